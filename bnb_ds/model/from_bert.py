"""Initialises models from BERT checkpoints. Every weight that BERT has is taken over; the others are new."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import BertConfig, BertForPreTraining, PreTrainedConfig

from bnb_ds.common.hub import checkpoint_errors
from bnb_ds.errors import CheckpointError, ConfigError, nearest
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.lm_head_model import BnbLMHeadModel
from bnb_ds.model.students.layer_choice import cut_halves, layers_from, weights_of_layers

M = TypeVar("M", bound=BnbLMHeadModel)

HEAD = "cls.predictions."
_POOLER = "bert.pooler.dense."
_POSITIONS = "embeddings.position_embeddings.weight"

#: settings of ``from_bert`` that go to the BERT configurations of both halves
BERT_OVERRIDES = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_POSITION_OVERRIDES = ("max_position_embeddings", "extend_positions")
_DEPTH_OVERRIDES = ("encoder_layers", "decoder_layers")


@dataclass(frozen=True)
class BertCheckpoint:
    """A BERT checkpoint in memory.

    Attributes:
        config: its configuration.
        body: float32 embeddings and layers, under the names of `bnb_ds.model.layers.BnbEncoder`.
        head: transform and bias of the prediction head, under the names of `bnb_ds.model.layers.BnbLMHead`; None if
            the checkpoint has no head.
        pooler: its one linear layer, under the names of BERT's pooler; None if the checkpoint has no pooler.
    """

    config: BertConfig
    body: dict[str, Tensor]
    head: dict[str, Tensor] | None
    pooler: dict[str, Tensor] | None


def read_bert(source: str | PathLike[str]) -> BertCheckpoint:
    """Read a Hugging Face BERT directory or hub name: a BertModel, BertForMaskedLM or BertForPreTraining checkpoint.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, of another architecture, or lacks weights of BERT.
    """
    model, missing = _load(source)
    weights = model.state_dict()
    lost = sorted(key for key in missing if not key.startswith(("cls.", _POOLER)))
    if lost:
        raise CheckpointError(f"{source}: {len(lost)} weights of BERT are missing; the first is {lost[0]}")
    body = {
        key.removeprefix("bert.").removeprefix("encoder."): weight
        for key, weight in weights.items()
        if key.startswith("bert.") and not key.startswith(_POOLER)
    }
    head = {
        key.removeprefix(HEAD): weight
        for key, weight in weights.items()
        if key.startswith(HEAD) and not key.startswith(f"{HEAD}decoder.")  # its matrix is that of the word embeddings
    }
    pooler = {key.removeprefix("bert.pooler."): weight for key, weight in weights.items() if key.startswith(_POOLER)}
    has_head, has_pooler = (not any(key.startswith(part) for key in missing) for part in (HEAD, _POOLER))
    return BertCheckpoint(model.config, body, head if has_head else None, pooler if has_pooler else None)


def read_bert_config(source: str | PathLike[str]) -> BertConfig:
    """Read the configuration of a BERT checkpoint, without its weights.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of another architecture.
    """
    with checkpoint_errors(source, "BERT checkpoint"):
        model_type = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
        if model_type != "bert":
            raise CheckpointError(f"{source}: the model type is {model_type!r}: give a BERT checkpoint")
        return BertConfig.from_pretrained(source, is_decoder=False, add_cross_attention=False)


def _load(source: str | PathLike[str]) -> tuple[BertForPreTraining, set[str]]:
    config = read_bert_config(source)
    with checkpoint_errors(source, "BERT checkpoint"):
        model, info = BertForPreTraining.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True
        )
    return model, set(info["missing_keys"])


def config_from_bert(
    encoder: str | PathLike[str], decoder: str | PathLike[str] | None, overrides: dict[str, Any]
) -> BnbConfig:
    """The configuration of the model that `initialise_from_bert` makes from the same arguments. It reads no weights."""
    bert_overrides = {name: overrides[name] for name in BERT_OVERRIDES if name in overrides}
    beside = (*BERT_OVERRIDES, *_POSITION_OVERRIDES, *_DEPTH_OVERRIDES)
    own_overrides = {name: value for name, value in overrides.items() if name not in beside}
    check_overrides("from_bert", own_overrides, beside)
    if decoder is not None and not overrides.get("has_decoder", True):
        raise ConfigError(f"decoder is {decoder}, but has_decoder is false: leave one of the two out")
    halves = {"encoder": read_bert_config(encoder), "decoder": read_bert_config(decoder or encoder)}
    for half in halves.values():
        half.update(bert_overrides)
    wanted = overrides.get("max_position_embeddings")
    if wanted is not None:
        _set_positions(halves, wanted, may_extend=bool(overrides.get("extend_positions")))
    config = BnbConfig(**halves, **own_overrides)
    cut_halves(config, *(overrides.get(name) for name in _DEPTH_OVERRIDES))
    return config


def _set_positions(halves: dict[str, BertConfig], wanted: int, *, may_extend: bool) -> None:
    for name, half in halves.items():
        available = half.max_position_embeddings
        if wanted < 1 or (wanted > available and not may_extend):
            raise ConfigError(
                f"max_position_embeddings is {wanted}, but the {name}'s checkpoint has {available} position "
                f"embeddings: give 1 to {available}, or set extend_positions to repeat them"
            )
        half.max_position_embeddings = wanted


def initialise_from_bert(
    model_class: type[M],
    encoder: str | PathLike[str],
    decoder: str | PathLike[str] | None,
    overrides: dict[str, Any],
) -> tuple[M, BertCheckpoint]:
    """The model that `bnb_ds.modeling.BnbForConditionalGeneration.from_bert` returns, and the encoder's checkpoint."""
    model = model_class(config_from_bert(encoder, decoder, overrides))
    encoder_bert = read_bert(encoder)
    model.model.encoder.load_state_dict(_body_of("encoder", encoder_bert.body, model.config))
    _load_writer(model, encoder_bert if decoder is None else read_bert(decoder))
    return model.eval(), encoder_bert


def _body_of(half: str, body: dict[str, Tensor], config: BnbConfig) -> dict[str, Tensor]:
    """The layers and positions of the checkpoint that a half takes."""
    return weights_of_layers(_with_positions(body, getattr(config, half)), layers_from(config, half))


def _with_positions(body: dict[str, Tensor], config: BertConfig) -> dict[str, Tensor]:
    """The body with the configuration's number of position embeddings: the first ones, or all of them repeated."""
    positions = body[_POSITIONS]
    repeats = -(-config.max_position_embeddings // positions.shape[0])
    positions = positions.repeat(repeats, 1)[: config.max_position_embeddings]
    buffer = {"embeddings.position_ids": torch.arange(config.max_position_embeddings)[None]}
    return {**body, _POSITIONS: positions, **{name: value for name, value in buffer.items() if name in body}}


def _load_writer(model: BnbLMHeadModel, bert: BertCheckpoint) -> None:
    """The decoder, if there is one, and the LM head."""
    if model.model.decoder is not None:
        _load_decoder(model, bert)
    if bert.head is not None:
        model.lm_head.load_state_dict(bert.head)


def _load_decoder(model: BnbLMHeadModel, bert: BertCheckpoint) -> None:
    assert model.model.decoder is not None
    body = _body_of("decoder", bert.body, model.config)
    new, unknown = model.model.decoder.load_state_dict(body, strict=False)
    assert not unknown, f"the decoder has no place for {unknown}"
    own = ("token_gate", "feedback", "crossattention", "latent_projection")
    assert all(any(part in key for part in own) for key in new), f"not initialised: {new}"


def check_overrides(function: str, overrides: dict[str, Any], more: tuple[str, ...] = ()) -> None:
    """Raise ConfigError for an override that is neither a field of `BnbConfig` nor one of ``more``."""
    known = [name for name in inspect.signature(BnbConfig.__init__).parameters if name not in ("self", "kwargs")]
    settable = [*(name for name in known if name not in ("encoder", "decoder")), *more]
    for name in overrides:
        if name not in settable:
            raise ConfigError(f"{function} has no setting {name!r}: {nearest(name, settable)}")
