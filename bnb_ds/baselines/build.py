"""Build a transformers model, with all settings that it needs, from the ``model`` section of a recipe.

transformers leaves some settings to the caller, and a missing one fails silently. An `EncoderDecoderModel` has no
``decoder_start_token_id`` by default. A decoder made from a BERT needs ``is_decoder`` and ``add_cross_attention``.
Generation reads its settings only from ``generation_config``. This module sets all of them, and no other module does.
It makes configurations without reading weights, so a plan can be checked before weights are read.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
    MarianConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bnb_ds.baselines.settings import (
    AutoregressiveSection,
    Bert2bertSection,
    ClassifierSection,
    Seq2SeqSection,
    TransformerSection,
)
from bnb_ds.common.hub import checkpoint_errors
from bnb_ds.data.tokenization import vocabulary_size
from bnb_ds.errors import CheckpointError, ConfigError, DataError

#: field of a bert2bert's configuration: the decoder shares the encoder's weights
SHARED_HALVES = "shared_halves"

_TOP_FIELDS = (
    "vocab_size",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    SHARED_HALVES,
)
#: families of which transformers makes decoders with cross-attention, and encoders without a pooler
_FAMILIES = ("bert", "roberta", "xlm-roberta")
_BERT_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_DROPOUT_NAMES = (*_BERT_DROPOUT, "dropout", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop")
_RANDOM_DROPOUT = 0.1
# transformers adds these weights to the encoder of a bert2bert; they are never used.
_UNUSED = "encoder.pooler."


def bert2bert_config(
    section: Bert2bertSection, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase
) -> EncoderDecoderConfig:
    """Make the configuration of a BERT2BERT, whose halves may be RoBERTas too.

    Raises:
        CheckpointError: a checkpoint cannot be read, or is of no family in `_FAMILIES`.
        DataError: a tokenizer has more tokens than the checkpoint.
        ConfigError: the halves cannot share weights because their vocabularies differ.
    """
    if section.tie_encoder_decoder and not _same_vocabulary(source, target):
        raise ConfigError("model.tie_encoder_decoder: source and target have different vocabularies; set it to false")
    if section.encoder is None:
        encoder, decoder = _random_halves(section, source, target)
    else:
        checkpoints = (section.encoder, section.decoder or section.encoder)
        encoder, decoder = map(_read_bert_config, checkpoints)
        for half in (encoder, decoder):
            _set_dropout(half, section.dropout)
        refuse_large_vocabulary(checkpoints[0], encoder.vocab_size, source)
        refuse_large_vocabulary(checkpoints[1], decoder.vocab_size, target)
    encoder.is_decoder = encoder.add_cross_attention = False
    decoder.is_decoder = decoder.add_cross_attention = True
    return EncoderDecoderConfig.from_encoder_decoder_configs(
        encoder,
        decoder,
        vocab_size=decoder.vocab_size,
        bos_token_id=target.cls_token_id,
        eos_token_id=target.sep_token_id,
        pad_token_id=target.pad_token_id,
        decoder_start_token_id=target.cls_token_id,
        **{SHARED_HALVES: section.tie_encoder_decoder},
    )


def transformer_config(
    section: TransformerSection, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase
) -> MarianConfig:
    """Make the configuration of the paper's Transformer. Equal source and target vocabularies share embeddings."""
    size, dropout = section.size, _RANDOM_DROPOUT if section.dropout is None else section.dropout
    return MarianConfig(
        vocab_size=vocabulary_size(source),
        decoder_vocab_size=vocabulary_size(target),
        share_encoder_decoder_embeddings=_same_vocabulary(source, target),
        d_model=size.hidden_size,
        encoder_layers=size.encoder_layers,
        decoder_layers=size.decoder_layers,
        encoder_attention_heads=size.num_attention_heads,
        decoder_attention_heads=size.num_attention_heads,
        encoder_ffn_dim=size.intermediate_size,
        decoder_ffn_dim=size.intermediate_size,
        max_position_embeddings=size.max_position_embeddings,
        init_std=size.initializer_range,
        activation_function="swish",
        scale_embedding=True,
        dropout=dropout,
        attention_dropout=dropout,
        activation_dropout=0.0,
        pad_token_id=source.pad_token_id,
        bos_token_id=target.cls_token_id,
        eos_token_id=target.sep_token_id,
        decoder_start_token_id=target.cls_token_id,
        forced_eos_token_id=None,
    )


def seq2seq_config(section: Seq2SeqSection, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> Any:
    """Read the configuration of a checkpoint.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is not an encoder-decoder.
        DataError: the tokenizers do not fit the checkpoint.
    """
    with checkpoint_errors(section.checkpoint, "sequence-to-sequence model"):
        config = AutoConfig.from_pretrained(section.checkpoint, trust_remote_code=False)
    _refuse_without_start(section.checkpoint, config)
    _set_dropout(config, section.dropout)
    for tokenizer in (source, target):
        refuse_large_vocabulary(section.checkpoint, config.vocab_size, tokenizer)
    for name, token in (("eos_token_id", target.sep_token_id), ("pad_token_id", target.pad_token_id)):
        if getattr(config, name) != token:
            raise DataError(
                f"{section.checkpoint}: its {name} is {getattr(config, name)}, but the tokenizer's is {token}; remove"
                " data.tokenizer, or give the checkpoint's own"
            )
    return config


def classifier_config(section: ClassifierSection, tokenizer: PreTrainedTokenizerBase, num_labels: int) -> Any:
    """Read a checkpoint's configuration and set ``num_labels`` (1: a regression). Raises as `seq2seq_config`."""
    with checkpoint_errors(section.checkpoint, "model for classification"):
        config = AutoConfig.from_pretrained(section.checkpoint, trust_remote_code=False)
    _set_dropout(config, section.dropout)
    config.num_labels = num_labels
    config.pad_token_id = tokenizer.pad_token_id
    if config.model_type == "openai-gpt":
        # Fine-tuning adds special tokens: the start, separator and end of Radford et al., 2018.
        config.vocab_size = max(config.vocab_size, vocabulary_size(tokenizer))
    refuse_large_vocabulary(section.checkpoint, config.vocab_size, tokenizer)
    return config


def model_of(config: Any) -> PreTrainedModel:
    """Make an encoder-decoder with random weights from torch's global generator."""
    if not isinstance(config, EncoderDecoderConfig):
        return AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    encoder = AutoModel.from_config(config.encoder, add_pooling_layer=False)
    decoder = AutoModelForCausalLM.from_config(config.decoder)
    return _with_shared_halves(EncoderDecoderModel(config=config, encoder=encoder, decoder=decoder))


def build_bert2bert(section: Bert2bertSection, config: EncoderDecoderConfig) -> PreTrainedModel:
    """Make the model of `bert2bert_config`. Cross-attention is new, and so is a head that the checkpoint lacks.

    Raises:
        CheckpointError: a checkpoint cannot be read.
    """
    if section.encoder is None:
        return model_of(config)
    encoder, decoder = section.encoder, section.decoder or section.encoder
    with checkpoint_errors(encoder if encoder == decoder else f"{encoder} and {decoder}", "BERT"):
        model = EncoderDecoderModel.from_encoder_decoder_pretrained(
            encoder,
            decoder,
            encoder_config=copy.deepcopy(config.encoder),
            encoder_add_pooling_layer=False,
            encoder_dtype=torch.float32,
            decoder_config=copy.deepcopy(config.decoder),
            decoder_dtype=torch.float32,
        )
    # Copy field by field: the model's configuration also records its attention implementation, and without that record
    # the decoder would attend to the padding of sources.
    for name in _TOP_FIELDS:
        setattr(model.config, name, getattr(config, name))
    return _with_shared_halves(model)


def read_seq2seq(checkpoint: str | Path, config: Any = None) -> PreTrainedModel:
    """Read an encoder-decoder with its weights, in float32 and evaluation mode.

    Args:
        checkpoint: Hugging Face directory or hub name.
        config: replaces the checkpoint's configuration.

    Raises:
        CheckpointError: the checkpoint cannot be read, or lacks weights.
    """
    settings = {} if config is None else {"config": config}
    with checkpoint_errors(checkpoint, "sequence-to-sequence model"):
        model, info = AutoModelForSeq2SeqLM.from_pretrained(
            checkpoint, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, **settings
        )
    missing = [name for name in info["missing_keys"] if not name.startswith(_UNUSED)]
    if missing:
        raise CheckpointError(f"{checkpoint}: lacks weights such as {min(missing)}; name a whole model")
    _refuse_without_start(checkpoint, model.config)
    if isinstance(model, EncoderDecoderModel):
        model.encoder.pooler = None
    return model.eval()


def read_classifier(checkpoint: str | Path, config: Any = None) -> PreTrainedModel:
    """Read a classifier with its weights, in float32 and evaluation mode.

    Args:
        checkpoint: Hugging Face directory or hub name.
        config: replaces the checkpoint's configuration; the head may then be new.

    Raises:
        CheckpointError: the checkpoint cannot be read, or lacks weights of a trained classifier.
    """
    with checkpoint_errors(checkpoint, "model for classification"):
        own = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        if config is not None:
            # Read with the checkpoint's vocabulary; embeddings of new tokens are added afterwards.
            own = type(config).from_dict({**config.to_dict(), "vocab_size": own.vocab_size})
        model, info = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, config=own, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    if config is None and info["missing_keys"]:
        raise CheckpointError(f"{checkpoint}: lacks weights such as {min(info['missing_keys'])}; name a whole model")
    if config is not None and config.vocab_size > own.vocab_size:
        model.resize_token_embeddings(config.vocab_size, mean_resizing=False)
    return model.eval()


def classifier_of(config: Any) -> PreTrainedModel:
    """Make a classifier with random weights."""
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)


def set_generation(model: PreTrainedModel, section: AutoregressiveSection) -> None:
    """Set the default generation settings of a model; they are saved with its weights."""
    config = model.config
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        num_beams=section.num_beams,
        length_penalty=section.length_penalty,
        no_repeat_ngram_size=section.no_repeat_ngram_size,
    )


def refuse_large_vocabulary(checkpoint: str, available: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise DataError if a tokenizer has more tokens than a checkpoint."""
    wanted = vocabulary_size(tokenizer)
    if wanted > available:
        raise DataError(
            f"{checkpoint}: has {available} tokens, but the tokenizer has {wanted}; remove data.tokenizer, or give the"
            " checkpoint's own"
        )


def _read_bert_config(checkpoint: str) -> PreTrainedConfig:
    with checkpoint_errors(checkpoint, "BERT"):
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    if config.model_type not in _FAMILIES:
        raise CheckpointError(
            f"{checkpoint}: is a {config.model_type} model, but bert2bert needs checkpoints of one of:"
            f" {', '.join(_FAMILIES)}; give one"
        )
    return config


def _random_halves(
    section: Bert2bertSection, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase
) -> list[BertConfig]:
    size = section.size
    return [
        BertConfig(
            vocab_size=vocabulary_size(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            hidden_size=size.hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=size.num_attention_heads,
            intermediate_size=size.intermediate_size,
            max_position_embeddings=size.max_position_embeddings,
            initializer_range=size.initializer_range,
            **dict.fromkeys(_BERT_DROPOUT, _RANDOM_DROPOUT if section.dropout is None else section.dropout),
        )
        for tokenizer, num_layers in ((source, size.encoder_layers), (target, size.decoder_layers))
    ]


def _with_shared_halves(model: EncoderDecoderModel) -> EncoderDecoderModel:
    """If the configuration says so, let the decoder use the encoder's embeddings and layers.

    The decoder keeps its own cross-attention.
    """
    if not getattr(model.config, SHARED_HALVES, False):
        return model
    encoder, decoder = model.encoder, model.decoder.base_model
    decoder.embeddings = encoder.embeddings
    model.decoder.get_output_embeddings().weight = encoder.embeddings.word_embeddings.weight
    for ours, theirs in zip(decoder.encoder.layer, encoder.encoder.layer, strict=True):
        for part in ("query", "key", "value"):
            setattr(ours.attention.self, part, getattr(theirs.attention.self, part))
        ours.attention.output = theirs.attention.output
        ours.intermediate, ours.output = theirs.intermediate, theirs.output
    return model


def _refuse_without_start(checkpoint: str | Path, config: Any) -> None:
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        if getattr(config, name, None) is None:
            raise CheckpointError(f"{checkpoint}: its config.json has no {name}; give an encoder-decoder that has one")


def _same_vocabulary(source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> bool:
    return source is target or source.get_vocab() == target.get_vocab()


def _set_dropout(config: Any, dropout: float | None) -> None:
    if dropout is not None:
        for name in _DROPOUT_NAMES:
            if hasattr(config, name):
                setattr(config, name, dropout)
