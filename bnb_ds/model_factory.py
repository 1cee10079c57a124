"""Builds a model that is ready to train, from a recipe's ``model`` section and the vocabulary of the data."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedConfig

from bnb_ds.common.hub import TARGET_TOKENIZER, checkpoint_errors, refuse_other_model, tokenizer_directory
from bnb_ds.config.model_section import ModelSection, ModelSize
from bnb_ds.data.tokenization import Vocabulary, load_tokenizer, tokenizer_hash
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.model.backbones.entries import backbone_of, positions_of
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.from_bert import config_from_bert
from bnb_ds.model.slots import decoder_lengths, room_for_masks
from bnb_ds.model.students.layer_choice import cut_halves, shallow_model
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.shards.mixed import Corpus

#: fields with the same name in a recipe's ``model`` section and in `BnbConfig`
_SAME_NAME = (
    "latent_size",
    "latent_dropout",
    "decoder_length",
    "decoder_length_ratio",
    "decoder_length_offset",
    "decoder_length_min",
    "decoder_length_max",
    "decoder_positions",
    "length_difference_min",
    "length_difference_max",
    "length_loss_weight",
    "kl_weight",
    "loss_reduction",
    "tie_encoder_decoder",
    "target",
    "link_heads",
    "link_positions",
    "decoder_tokens",
    "slot_tokens",
    "has_decoder",
    "decoder_latent",
    "refined_tokens",
    "deep_supervision",
    "deep_supervision_every",
    "segment_blocks",
    "embedding_range",
)
#: field of a BERT configuration -> its name in a recipe
DROPOUT_NAMES = {"hidden_dropout_prob": "hidden_dropout", "attention_probs_dropout_prob": "attention_dropout"}
_FIXED_BY_CHECKPOINT = ("latent_size", "tie_encoder_decoder", "max_position_embeddings", "extend_positions")


def model_config(
    section: ModelSection, source: Vocabulary, max_length: int, target: Vocabulary | None = None
) -> BnbConfig:
    """The configuration of the model that :func:`build_model` makes. No weights are made or read.

    Args:
        section: the recipe's ``model`` section.
        source: vocabulary and special ids of the sources; in pre-training those of the shards.
        max_length: longest source in tokens.
        target: vocabulary and special ids of the targets; None: those of the sources.

    Raises:
        ConfigError: the model has fewer positions than ``max_length`` needs.
        DataError: the checkpoint and the data have different vocabularies.
        CheckpointError: the checkpoint cannot be read.
    """
    target = target or source
    if section.checkpoint is not None:
        config = _checkpoint_config(section, source, target)
        cut_halves(config, section.encoder_layers, section.decoder_layers)
        own = Path(section.checkpoint) / TARGET_TOKENIZER
        _refuse_other_tokenizer(section.checkpoint, source)
        _refuse_other_tokenizer(str(own) if own.is_dir() else section.checkpoint, target)
    elif section.encoder is None:
        size = {**(section.size or ModelSize()).model_dump(), **dropout_fields(section)}
        halves = {
            half: {
                **size,
                "num_hidden_layers": layers or size["num_hidden_layers"],
                "vocab_size": vocabulary.vocab_size,
                "pad_token_id": vocabulary.special_ids["pad"],
            }
            for half, layers, vocabulary in (
                ("encoder", section.encoder_layers, source),
                ("decoder", section.decoder_layers, target),
            )
        }
        config = BnbConfig(**halves, **bnb_fields(section, source, target))
    else:
        config = config_from_bert(section.encoder, section.decoder, _overrides_of_bert(section, source, target))
        _refuse_other_tokenizer(section.encoder, source)
        _refuse_other_tokenizer(section.decoder or section.encoder, target)
    refuse_misfits(config, source, max_length, target)
    return config


def refuse_misfits(config: BnbConfig, source: Vocabulary, max_length: int, target: Vocabulary) -> None:
    """Refuse a configuration with too few tokens or positions. Arguments and errors are those of `model_config`."""
    _refuse_small_vocabulary(config, source, target)
    field = "data.max_length" if isinstance(source, Corpus) else "data.max_source_length"
    _refuse_short_positions(config, max_length, field)


def refuse_equal_slots(section: ModelSection, config: BnbConfig) -> None:
    """Refuse settings of a new model that give every source slots which are equal to the last bit.

    A model that exists keeps them: a run that is resumed is not asked, and neither is ``model.checkpoint`` with
    settings of its own.

    Args:
        section: the recipe's ``model`` section.
        config: the configuration that was made of it.

    Raises:
        ConfigError: ``decoder_positions`` is ``"shared"``, and a source token has more than two slots.
    """
    names = ("decoder_positions", "decoder_length", "decoder_length_ratio", "decoder_length_offset")
    if section.checkpoint is not None and not section.model_fields_set.intersection(names):
        return
    if config.decoder_positions != "shared" or config.decoder_length != "source":
        return
    equal = (
        "with model.decoder_positions shared a source token has two different slots at most, and all others equal them;"
    )
    if config.decoder_length_ratio > 2:
        raise ConfigError(
            f"model.decoder_length_ratio {config.decoder_length_ratio}: {equal} set it to 2, or decoder_positions to"
            " absolute"
        )
    if config.decoder_length_ratio == 2 and config.decoder_length_offset > 0:
        raise ConfigError(
            f"model.decoder_length_offset {config.decoder_length_offset}: {equal} set it to 0, or decoder_positions to"
            " absolute"
        )


def build_model(
    section: ModelSection,
    source: Vocabulary,
    max_length: int,
    model_class: type[BnbForConditionalGeneration] = BnbForConditionalGeneration,
    target: Vocabulary | None = None,
) -> BnbForConditionalGeneration:
    """Make the model: with random weights, from BERT checkpoints, or from an exported model.

    Arguments and errors are those of `model_config`.
    """
    config = model_config(section, source, max_length, target)
    if section.checkpoint is not None:
        whole = _checkpoint_config(section, source, target or source)
        with checkpoint_errors(section.checkpoint, "BERT-NAR-BERT model"):
            model = model_class.from_pretrained(section.checkpoint, config=whole, dtype=torch.float32)
        return model if config.taken_layers == whole.taken_layers else shallow_model(model, config)
    if section.encoder is None:
        return model_class(config)
    return model_class.from_bert(
        section.encoder, section.decoder, **_overrides_of_bert(section, source, target or source)
    )


def dropout_fields(section: ModelSection) -> dict[str, float]:
    """Fields of both BERT configurations that a recipe's ``model`` section sets."""
    return {
        "hidden_dropout_prob": section.hidden_dropout,
        "attention_probs_dropout_prob": section.attention_dropout,
    }


def _overrides_of_bert(section: ModelSection, source: Vocabulary, target: Vocabulary) -> dict[str, object]:
    return {
        **bnb_fields(section, source, target),
        **dropout_fields(section),
        "max_position_embeddings": section.max_position_embeddings,
        "extend_positions": section.extend_positions,
        "encoder_layers": section.encoder_layers,
        "decoder_layers": section.decoder_layers,
    }


def _checkpoint_config(section: ModelSection, source: Vocabulary, target: Vocabulary) -> BnbConfig:
    """The checkpoint's own configuration, with the fields that the recipe sets replaced."""
    given = section.model_fields_set
    fixed = [name for name in _FIXED_BY_CHECKPOINT if name in given]
    if fixed:
        raise ConfigError(f"model.{fixed[0]}: model.checkpoint already decides it; remove one of the two")
    refuse_other_model(section.checkpoint, BnbConfig.model_type)
    with checkpoint_errors(section.checkpoint, "BERT-NAR-BERT model"):
        config = BnbConfig.from_pretrained(section.checkpoint)
    if "has_decoder" in given and section.has_decoder != config.has_decoder:
        has = "a decoder" if config.has_decoder else "no decoder"
        raise ConfigError(f"model.checkpoint {section.checkpoint}: has {has}; choose another model or another kind")
    replaced = {name: value for name, value in bnb_fields(section, source, target).items() if name in given}
    if "pair_types" in given:
        replaced["pair_separator_id"] = _pair_separator(section, source)
    links = _shape_of_links(config)
    config.update(replaced)
    for name, value in _shape_of_links(config).items():
        if value != links.get(name, value):
            raise ConfigError(
                f"model.{name}: the links of {section.checkpoint} were made for {links[name]}; remove model.{name}"
            )
    if config.mask_token_id is None:  # models made before slots could hold tokens do not have it
        config.mask_token_id = target.special_ids.get("mask")
    for half in (config.encoder, config.decoder):
        dropout = {name: value for name, value in dropout_fields(section).items() if DROPOUT_NAMES[name] in given}
        backbone_of(half).set_dropout(half, dropout)
    if config.decoder_length == "padded":
        raise ConfigError(
            f"{section.checkpoint}: its decoder_length is 'padded', which needs padded batches; set"
            " model.decoder_length to another policy"
        )
    config.check()
    return config


def _shape_of_links(config: BnbConfig) -> dict[str, int]:
    """The settings that say which weights the links of a graph have; none for another target."""
    if config.target_kind != "dag":
        return {}
    heads = config.link_heads or config.decoder.num_attention_heads
    return {"link_heads": heads, "link_positions": config.link_positions}


def bnb_fields(section: ModelSection, source: Vocabulary, target: Vocabulary) -> dict[str, object]:
    """Fields of `BnbConfig` that a recipe's ``model`` section and the vocabularies set."""
    return {
        **{name: getattr(section, name) for name in _SAME_NAME},
        "decoding": section.decoding.model_dump(exclude_none=True),
        "blank_token_id": target.special_ids["pad"],
        "pad_token_id": target.special_ids["pad"],
        "bos_token_id": target.special_ids["cls"],
        "eos_token_id": target.special_ids["sep"],
        "mask_token_id": target.special_ids.get("mask"),
        "pair_separator_id": _pair_separator(section, source),
    }


def _pair_separator(section: ModelSection, source: Vocabulary) -> int | None:
    return source.special_ids["sep"] if section.pair_types else None


def _refuse_other_tokenizer(checkpoint: str, vocabulary: Vocabulary) -> None:
    directory = tokenizer_directory(checkpoint)
    if directory is None:
        return  # without a tokenizer in the checkpoint, only the vocabulary sizes are compared, further down
    if tokenizer_hash(load_tokenizer(directory)) == vocabulary.tokenizer_hash:
        return
    if isinstance(vocabulary, Corpus):
        raise DataError(
            f"{checkpoint}: its tokenizer is not the one that data.shards was made with;"
            f" make the shards again with `bnb-ds prep text --tokenizer {directory} ...`, or choose another model"
        )
    raise DataError(
        f"{checkpoint}: its tokenizer is not the one that data.tokenizer or data.target_tokenizer names; remove that"
        " setting, or choose a model with that vocabulary"
    )


def _refuse_small_vocabulary(config: BnbConfig, source: Vocabulary, target: Vocabulary) -> None:
    for half, bert, vocabulary in (("encoder", config.encoder, source), ("decoder", config.decoder, target)):
        if bert.vocab_size < vocabulary.vocab_size:
            data = "shards" if isinstance(vocabulary, Corpus) else "tokenizer"
            raise DataError(
                f"model.{half}: its vocabulary has {bert.vocab_size} tokens, the {data} {vocabulary.vocab_size};"
                " prepare the data with the checkpoint's own tokenizer"
            )
        refuse_other_padding(f"model.{half}", bert, vocabulary)


def refuse_other_padding(name: str, half: PreTrainedConfig, vocabulary: Vocabulary) -> None:
    """Refuse a tokenizer that pads with another token than a checkpoint: it has another vocabulary.

    A BERT's configuration often says nothing of its padding, so nothing is concluded from it.

    Raises:
        DataError: they differ.
    """
    pad = vocabulary.special_ids["pad"]
    if half.model_type != "bert" and half.pad_token_id not in (None, pad):
        data = "the shards pad" if isinstance(vocabulary, Corpus) else "the tokenizer pads"
        raise DataError(
            f"{name}: a {half.model_type} that pads with token {half.pad_token_id}, but {data} with {pad}, so they have"
            " different vocabularies; prepare the data with the checkpoint's own tokenizer"
        )


def _refuse_short_positions(config: BnbConfig, max_length: int, field: str) -> None:
    positions = positions_of(config.encoder)
    if max_length > positions:
        raise ConfigError(f"{field} {max_length}: the encoder has {positions} positions; set it to {positions}")
    slots = int(decoder_lengths(max_length, config))
    if not config.has_decoder and slots > positions:
        raise ConfigError(f"{field} {max_length}: {room_for_masks(max_length, config)}")
    if config.target_kind == "dag" and config.decoder_length == "source" and slots > config.link_positions:
        raise ConfigError(
            f"model.link_positions {config.link_positions}: {max_length} source tokens need a graph of {slots} slots;"
            f" raise it, or lower {field}, model.decoder_length_ratio or model.decoder_length_max"
        )
    limit = positions_of(config.decoder)
    if config.decoder_positions == "shared" and max_length > limit:
        raise ConfigError(
            f"model.decoder_positions shared: {max_length} source tokens need as many decoder positions, and the"
            f" decoder has {limit}; set it to absolute with a decoder_length_max of at most {limit}, or lower {field}"
        )
    if config.decoder_positions == "absolute" and slots > limit:
        first = "set it to shared" if max_length <= limit else f"set model.decoder_length_max to at most {limit}"
        raise ConfigError(
            f"model.decoder_positions absolute: {max_length} source tokens need {slots} decoder positions, but the"
            f" decoder has {limit}; {first}, or lower {field} or model.decoder_length_ratio"
        )
