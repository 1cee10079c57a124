"""From a recipe's ``baseline`` section to a transformers model with every setting said that makes it work.

What transformers leaves to the caller, and what then fails in silence: an `EncoderDecoderModel` starts its output with
whatever ``decoder_start_token_id`` holds (nothing), a decoder made from a BERT needs ``is_decoder`` and
``add_cross_attention``, and settings of generation count only in ``generation_config``. All are set here and nowhere
else.
"""

from __future__ import annotations

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
    MarianMTModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bnb_ds.baselines.classifier import ClassifierModel
from bnb_ds.baselines.seq2seq import AutoregressiveModel
from bnb_ds.baselines.settings import BaselineSection, BaselineSize
from bnb_ds.bert_init import checkpoint_errors
from bnb_ds.errors import CheckpointError, ConfigError, DataError

_DROPOUT_NAMES = ("dropout", "attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob")
_GPT_DROPOUT_NAMES = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_RANDOM_DROPOUT = 0.1


def build_autoregressive(
    section: BaselineSection, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase
) -> AutoregressiveModel:
    """An encoder-decoder to train.

    Args:
        section: of the recipe; its kind is not ``classifier``.
        source: tokenizer of the sources.
        target: tokenizer of the targets; the same object or another.

    Raises:
        CheckpointError: a checkpoint cannot be read, or is no encoder-decoder (no BERT).
        DataError: a vocabulary is larger than the checkpoint's.
        ConfigError: weights cannot be shared between two vocabularies.
    """
    builders = {"bert2bert": _bert2bert, "transformer": _transformer, "seq2seq": _seq2seq}
    model = builders[section.kind](section, source, target)
    _set_special_tokens(model, section, target)
    return AutoregressiveModel(model, label_smoothing=section.label_smoothing)


def build_classifier(section: BaselineSection, tokenizer: PreTrainedTokenizerBase, num_labels: int) -> ClassifierModel:
    """A checkpoint with a new classification head; 1 label is a regression.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        DataError: the vocabulary does not fit.
    """
    with checkpoint_errors(section.checkpoint, "model for classification"):
        config = AutoConfig.from_pretrained(section.checkpoint)
        _set_dropout(config, section.dropout)
        # The loss is computed by ClassifierModel.
        config.num_labels = num_labels
        config.pad_token_id = tokenizer.pad_token_id
        model = AutoModelForSequenceClassification.from_pretrained(
            section.checkpoint, config=config, dtype=torch.float32
        )
    _fit_vocabulary(model, section.checkpoint, tokenizer, may_grow=config.model_type == "openai-gpt")
    return ClassifierModel(model)


def load_autoregressive(directory: Path) -> AutoregressiveModel:
    """A trained baseline, in evaluation mode.

    Raises:
        CheckpointError: the directory holds none, or lacks weights.
    """
    with checkpoint_errors(directory, "encoder-decoder"):
        model, info = AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    # transformers gives the encoder of a bert2bert a pooler, which nothing reads.
    _refuse_missing(directory, info, "encoder.pooler.")
    if isinstance(model, EncoderDecoderModel):
        model.encoder.pooler = None
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        if getattr(model.config, name, None) is None:
            raise CheckpointError(f"{directory}: config.json says no {name}; export the model again, or add it")
    return AutoregressiveModel(model.eval())


def load_classifier(directory: Path) -> ClassifierModel:
    """A trained classifier, in evaluation mode. Errors as `load_autoregressive`."""
    with checkpoint_errors(directory, "model for classification"):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True
        )
    _refuse_missing(directory, info)
    return ClassifierModel(model.eval())


def _bert2bert(
    section: BaselineSection, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase
) -> EncoderDecoderModel:
    if section.tie_encoder_decoder and not _same_vocabulary(source, target):
        raise ConfigError("baseline.tie_encoder_decoder: source and target have different vocabularies; remove it")
    if section.encoder is None:
        model = _random_bert2bert(section, source, target)
    else:
        model = _warm_bert2bert(section, source, target)
    if section.tie_encoder_decoder:
        _share_weights(model)
    return model


def _warm_bert2bert(
    section: BaselineSection, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase
) -> EncoderDecoderModel:
    encoder, decoder = section.encoder, section.decoder or section.encoder
    for checkpoint in (encoder, decoder):
        with checkpoint_errors(checkpoint, "BERT"):
            kind = AutoConfig.from_pretrained(checkpoint).model_type
        if kind != "bert":
            raise CheckpointError(f"{checkpoint}: a {kind} model, not a BERT; bert2bert is made of BERT checkpoints")
    dropout = {} if section.dropout is None else dict.fromkeys(_DROPOUT_NAMES[2:], section.dropout)
    settings: dict[str, Any] = {
        "encoder_add_pooling_layer": False,
        "encoder_dtype": torch.float32,
        "decoder_dtype": torch.float32,
        "decoder_is_decoder": True,
        "decoder_add_cross_attention": True,
        **{f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in dropout.items()},
    }
    with checkpoint_errors(encoder if encoder == decoder else f"{encoder} and {decoder}", "BERT"):
        model = EncoderDecoderModel.from_encoder_decoder_pretrained(encoder, decoder, **settings)
    _fit_vocabulary(model.encoder, encoder, source)
    _fit_vocabulary(model.decoder, decoder, target)
    return model


def _random_bert2bert(
    section: BaselineSection, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase
) -> EncoderDecoderModel:
    size = section.size or BaselineSize()
    fields = {
        "hidden_size": size.hidden_size,
        "num_attention_heads": size.num_attention_heads,
        "intermediate_size": size.intermediate_size,
        "max_position_embeddings": size.max_position_embeddings,
        **dict.fromkeys(_DROPOUT_NAMES[2:], _RANDOM_DROPOUT if section.dropout is None else section.dropout),
    }
    encoder = BertConfig(
        **fields,
        vocab_size=vocabulary_of(source),
        pad_token_id=source.pad_token_id,
        num_hidden_layers=size.encoder_layers,
    )
    decoder = BertConfig(
        **fields,
        vocab_size=vocabulary_of(target),
        pad_token_id=target.pad_token_id,
        num_hidden_layers=size.decoder_layers,
        is_decoder=True,
        add_cross_attention=True,
    )
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    return EncoderDecoderModel(
        config=config,
        encoder=BertModel(config.encoder, add_pooling_layer=False),
        decoder=BertLMHeadModel(config.decoder),
    )


def _share_weights(model: EncoderDecoderModel) -> None:
    """The decoder's embeddings and layers become the encoder's own; cross-attention stays the decoder's."""
    encoder, decoder = model.encoder, model.decoder.bert
    decoder.embeddings = encoder.embeddings
    model.decoder.cls.predictions.decoder.weight = encoder.embeddings.word_embeddings.weight
    for ours, theirs in zip(decoder.encoder.layer, encoder.encoder.layer, strict=True):
        for part in ("query", "key", "value"):
            setattr(ours.attention.self, part, getattr(theirs.attention.self, part))
        ours.attention.output = theirs.attention.output
        ours.intermediate, ours.output = theirs.intermediate, theirs.output


def _transformer(
    section: BaselineSection, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase
) -> MarianMTModel:
    """Marian's Transformer with random weights, which is what the paper trains."""
    size, shared = section.size or BaselineSize(), _same_vocabulary(source, target)
    dropout = _RANDOM_DROPOUT if section.dropout is None else section.dropout
    config = MarianConfig(
        vocab_size=vocabulary_of(source),
        decoder_vocab_size=vocabulary_of(target),
        share_encoder_decoder_embeddings=shared,
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
    return MarianMTModel(config)


def _seq2seq(
    section: BaselineSection, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase
) -> PreTrainedModel:
    with checkpoint_errors(section.checkpoint, "encoder-decoder"):
        config = AutoConfig.from_pretrained(section.checkpoint)
        _set_dropout(config, section.dropout)
        model, info = AutoModelForSeq2SeqLM.from_pretrained(
            section.checkpoint, config=config, dtype=torch.float32, output_loading_info=True
        )
    _refuse_missing(section.checkpoint, info)
    for tokenizer in (source, target):
        _fit_vocabulary(model, section.checkpoint, tokenizer)
    return model


def _set_special_tokens(model: PreTrainedModel, section: BaselineSection, target: PreTrainedTokenizerBase) -> None:
    config = model.config
    if section.kind == "bert2bert":
        config.vocab_size = config.decoder.vocab_size
        config.bos_token_id = config.decoder_start_token_id = target.cls_token_id
        config.eos_token_id, config.pad_token_id = target.sep_token_id, target.pad_token_id
    own = {"eos_token_id": target.sep_token_id, "pad_token_id": target.pad_token_id}
    for name, token in own.items():
        if getattr(config, name) != token:
            raise DataError(
                f"{section.checkpoint}: its {name} is {getattr(config, name)}, the tokenizer's {token};"
                " give the checkpoint's own tokenizer"
            )
    # What `generate` needs; how to search is said at each call (BeamOptions).
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
    )


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id, added tokens included."""
    return max(tokenizer.get_vocab().values()) + 1


def _same_vocabulary(source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> bool:
    return source is target or source.get_vocab() == target.get_vocab()


def _fit_vocabulary(
    model: PreTrainedModel, checkpoint: str, tokenizer: PreTrainedTokenizerBase, *, may_grow: bool = False
) -> None:
    wanted, available = vocabulary_of(tokenizer), model.get_input_embeddings().num_embeddings
    if wanted > available and may_grow:
        model.resize_token_embeddings(wanted, mean_resizing=False)
    elif wanted > available:
        raise DataError(
            f"{checkpoint}: has {available} tokens, the tokenizer {wanted}; give the checkpoint's own tokenizer"
        )


def _set_dropout(config: Any, dropout: float | None) -> None:
    if dropout is not None:
        for name in (*_DROPOUT_NAMES, *_GPT_DROPOUT_NAMES):
            if hasattr(config, name):
                setattr(config, name, dropout)


def _refuse_missing(directory: str | Path, info: dict[str, Any], unused: str = "-") -> None:
    missing = [name for name in info["missing_keys"] if not name.startswith(unused)]
    if missing:
        raise CheckpointError(f"{directory}: lacks weights such as {min(missing)}; export it again")
