"""From a recipe's ``model`` to a transformers model with every setting said that makes it work.

What transformers leaves to the caller, and what then fails in silence: an `EncoderDecoderModel` starts its output with
whatever ``decoder_start_token_id`` holds (nothing), a decoder made from a BERT needs ``is_decoder`` and
``add_cross_attention``, and settings of generation count only in ``generation_config``. All are set here and nowhere
else. Configurations are made without reading weights, so that a plan can be checked before any are.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
    MarianConfig,
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
from bnb_ds.errors import CheckpointError, ConfigError, DataError

#: of a bert2bert's configuration: the decoder's weights are the encoder's own
SHARED_HALVES = "shared_halves"

_TOP_FIELDS = (
    "vocab_size",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    SHARED_HALVES,
)
_BERT_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_DROPOUT_NAMES = (*_BERT_DROPOUT, "dropout", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop")
_RANDOM_DROPOUT = 0.1
# What transformers gives the encoder of a bert2bert, and nothing reads.
_UNUSED = "encoder.pooler."


def bert2bert_config(
    section: Bert2bertSection, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase
) -> EncoderDecoderConfig:
    """Configuration of a BERT2BERT.

    Raises:
        CheckpointError: a checkpoint cannot be read, or is no BERT.
        DataError: a vocabulary is larger than the checkpoint's.
        ConfigError: weights cannot be shared between two vocabularies.
    """
    if section.tie_encoder_decoder and not _same_vocabulary(source, target):
        raise ConfigError("model.tie_encoder_decoder: source and target have different vocabularies; remove it")
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
    """Configuration of the paper's Transformer; source and target share embeddings where they share a vocabulary."""
    size, dropout = section.size, _RANDOM_DROPOUT if section.dropout is None else section.dropout
    return MarianConfig(
        vocab_size=vocabulary_of(source),
        decoder_vocab_size=vocabulary_of(target),
        share_encoder_decoder_embeddings=_same_vocabulary(source, target),
        d_model=size.hidden_size,
        encoder_layers=size.encoder_layers,
        decoder_layers=size.decoder_layers,
        encoder_attention_heads=size.num_attention_heads,
        decoder_attention_heads=size.num_attention_heads,
        encoder_ffn_dim=size.intermediate_size,
        decoder_ffn_dim=size.intermediate_size,
        max_position_embeddings=size.max_position_embeddings,
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
    """A checkpoint's own configuration.

    Raises:
        CheckpointError: it cannot be read, or is no encoder-decoder.
        DataError: the tokenizers are not the checkpoint's.
    """
    with checkpoint_errors(section.checkpoint, "sequence-to-sequence model"):
        config = AutoConfig.from_pretrained(section.checkpoint)
    _refuse_without_start(section.checkpoint, config)
    _set_dropout(config, section.dropout)
    for tokenizer in (source, target):
        refuse_large_vocabulary(section.checkpoint, config.vocab_size, tokenizer)
    for name, token in (("eos_token_id", target.sep_token_id), ("pad_token_id", target.pad_token_id)):
        if getattr(config, name) != token:
            raise DataError(
                f"{section.checkpoint}: its {name} is {getattr(config, name)}, the tokenizer's {token}; remove"
                " data.tokenizer, or name the checkpoint's own"
            )
    return config


def classifier_config(section: ClassifierSection, tokenizer: PreTrainedTokenizerBase, num_labels: int) -> Any:
    """A checkpoint's configuration with a head of ``num_labels`` (1: a regression). Errors as `seq2seq_config`."""
    with checkpoint_errors(section.checkpoint, "model for classification"):
        config = AutoConfig.from_pretrained(section.checkpoint)
    _set_dropout(config, section.dropout)
    config.num_labels = num_labels
    config.pad_token_id = tokenizer.pad_token_id
    if config.model_type == "openai-gpt":
        # Its special tokens are new ones: the start, the separator and the end of Radford et al., 2018.
        config.vocab_size = max(config.vocab_size, vocabulary_of(tokenizer))
    refuse_large_vocabulary(section.checkpoint, config.vocab_size, tokenizer)
    return config


def model_of(config: Any) -> PreTrainedModel:
    """An encoder-decoder of random weights, from torch's global generator."""
    if not isinstance(config, EncoderDecoderConfig):
        return AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    encoder, decoder = BertModel(config.encoder, add_pooling_layer=False), BertLMHeadModel(config.decoder)
    return _with_shared_halves(EncoderDecoderModel(config=config, encoder=encoder, decoder=decoder))


def build_bert2bert(section: Bert2bertSection, config: EncoderDecoderConfig) -> PreTrainedModel:
    """The weights of `bert2bert_config`. Cross-attention, and a head that a checkpoint lacks, are new.

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
    # Field by field: the model's own configuration also knows its implementation of attention, and without that the
    # padding of sources would be attended to.
    for name in _TOP_FIELDS:
        setattr(model.config, name, getattr(config, name))
    return _with_shared_halves(model)


def read_seq2seq(checkpoint: str | Path, config: Any = None) -> PreTrainedModel:
    """An encoder-decoder with its weights, in float32 and evaluation mode.

    Args:
        checkpoint: Hugging Face directory or hub name.
        config: takes the place of its own.

    Raises:
        CheckpointError: it cannot be read, or lacks weights.
    """
    settings = {} if config is None else {"config": config}
    with checkpoint_errors(checkpoint, "sequence-to-sequence model"):
        model, info = AutoModelForSeq2SeqLM.from_pretrained(
            checkpoint, dtype=torch.float32, output_loading_info=True, **settings
        )
    missing = [name for name in info["missing_keys"] if not name.startswith(_UNUSED)]
    if missing:
        raise CheckpointError(f"{checkpoint}: lacks weights such as {min(missing)}; name a whole model")
    _refuse_without_start(checkpoint, model.config)
    if isinstance(model, EncoderDecoderModel):
        model.encoder.pooler = None
    return model.eval()


def read_classifier(checkpoint: str | Path, config: Any = None) -> PreTrainedModel:
    """A classifier with its weights, in float32 and evaluation mode.

    Args:
        checkpoint: Hugging Face directory or hub name.
        config: takes the place of its own; the head may then be new.

    Raises:
        CheckpointError: it cannot be read, or lacks weights of a trained classifier.
    """
    with checkpoint_errors(checkpoint, "model for classification"):
        own = AutoConfig.from_pretrained(checkpoint)
        if config is not None:
            # The embeddings of new tokens come after reading.
            own = type(config).from_dict({**config.to_dict(), "vocab_size": own.vocab_size})
        model, info = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, config=own, dtype=torch.float32, output_loading_info=True
        )
    if config is None and info["missing_keys"]:
        raise CheckpointError(f"{checkpoint}: lacks weights such as {min(info['missing_keys'])}; name a whole model")
    if config is not None and config.vocab_size > own.vocab_size:
        model.resize_token_embeddings(config.vocab_size, mean_resizing=False)
    return model.eval()


def classifier_of(config: Any) -> PreTrainedModel:
    """A classifier of random weights."""
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)


def set_generation(model: PreTrainedModel, section: AutoregressiveSection) -> None:
    """How the trained model writes, where nothing else is said; it is saved with the weights."""
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


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id, added tokens included."""
    return max(tokenizer.get_vocab().values()) + 1


def refuse_large_vocabulary(checkpoint: str, available: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise DataError if a tokenizer has tokens that a checkpoint does not know."""
    wanted = vocabulary_of(tokenizer)
    if wanted > available:
        raise DataError(
            f"{checkpoint}: has {available} tokens, the tokenizer {wanted}; remove data.tokenizer, or name the"
            " checkpoint's own"
        )


def _read_bert_config(checkpoint: str) -> BertConfig:
    with checkpoint_errors(checkpoint, "BERT"):
        config = AutoConfig.from_pretrained(checkpoint)
    if not isinstance(config, BertConfig):
        raise CheckpointError(
            f"{checkpoint}: a {config.model_type} model; bert2bert is made of BERT checkpoints: name one"
        )
    return config


def _random_halves(
    section: Bert2bertSection, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase
) -> list[BertConfig]:
    size = section.size
    return [
        BertConfig(
            vocab_size=vocabulary_of(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            hidden_size=size.hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=size.num_attention_heads,
            intermediate_size=size.intermediate_size,
            max_position_embeddings=size.max_position_embeddings,
            **dict.fromkeys(_BERT_DROPOUT, _RANDOM_DROPOUT if section.dropout is None else section.dropout),
        )
        for tokenizer, num_layers in ((source, size.encoder_layers), (target, size.decoder_layers))
    ]


def _with_shared_halves(model: EncoderDecoderModel) -> EncoderDecoderModel:
    """Where the configuration says so, the decoder's embeddings and layers become the encoder's own.

    Cross-attention stays the decoder's.
    """
    if not getattr(model.config, SHARED_HALVES, False):
        return model
    encoder, decoder = model.encoder, model.decoder.bert
    decoder.embeddings = encoder.embeddings
    model.decoder.cls.predictions.decoder.weight = encoder.embeddings.word_embeddings.weight
    for ours, theirs in zip(decoder.encoder.layer, encoder.encoder.layer, strict=True):
        for part in ("query", "key", "value"):
            setattr(ours.attention.self, part, getattr(theirs.attention.self, part))
        ours.attention.output = theirs.attention.output
        ours.intermediate, ours.output = theirs.intermediate, theirs.output
    return model


def _refuse_without_start(checkpoint: str | Path, config: Any) -> None:
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        if getattr(config, name, None) is None:
            raise CheckpointError(f"{checkpoint}: config.json says no {name}; name an encoder-decoder that does")


def _same_vocabulary(source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> bool:
    return source is target or source.get_vocab() == target.get_vocab()


def _set_dropout(config: Any, dropout: float | None) -> None:
    if dropout is not None:
        for name in _DROPOUT_NAMES:
            if hasattr(config, name):
                setattr(config, name, dropout)
