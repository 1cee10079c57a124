"""Initialises models from pre-trained encoders. Every weight that they have is taken over; the others are new."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from bnb_ds.common.hub import checkpoint_errors
from bnb_ds.errors import CheckpointError, ConfigError, nearest
from bnb_ds.model.backbones.backbone import Backbone
from bnb_ds.model.backbones.entries import BACKBONES, TAKEN, backbone_of, refusal
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.layers import BnbEncoder
from bnb_ds.model.lm_head_model import BnbLMHeadModel
from bnb_ds.model.students.layer_choice import cut_halves, layers_from, weights_of_layers

M = TypeVar("M", bound=BnbLMHeadModel)

_POOLER = "pooler."
_POSITIONS = "embeddings.position_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
#: the auto classes whose code would have to be run
_REMOTE = ("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForPreTraining")

#: settings of ``from_bert`` that go to the configurations of both halves, under BERT's names
BERT_OVERRIDES = ("hidden_dropout_prob", "attention_probs_dropout_prob")
#: what is read, in messages
_KIND = "checkpoint of a pre-trained encoder"
#: token types of ``decoder_positions`` ``"shared"``
_SHARED_TYPES = 2
_POSITION_OVERRIDES = ("max_position_embeddings", "extend_positions")
_DEPTH_OVERRIDES = ("encoder_layers", "decoder_layers")


@dataclass(frozen=True)
class BertCheckpoint:
    """A checkpoint of a BERT or of another backbone in memory.

    Attributes:
        config: that of the half which it makes.
        body: float32 embeddings and layers, under the names of `bnb_ds.model.layers.BnbEncoder`.
        head: transform and bias of the prediction head, under the names of `bnb_ds.model.layers.BnbLMHead`; None if
            the checkpoint has no head.
        pooler: its one linear layer, under the names of BERT's pooler; None if the checkpoint has no pooler.
    """

    config: PreTrainedConfig
    body: dict[str, Tensor]
    head: dict[str, Tensor] | None
    pooler: dict[str, Tensor] | None


def read_bert(source: str | PathLike[str]) -> BertCheckpoint:
    """Read a Hugging Face directory or hub name of a BERT or another backbone: the encoder alone, or with any head.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, of another architecture, or lacks weights of its encoder.
    """
    backbone, config = _read_config(source)
    model, missing = _load(source, backbone, config)
    weights, base = model.state_dict(), backbone.base
    pooler_prefix = f"{base}{_POOLER}"
    heads = tuple(theirs for theirs, _ in backbone.head_names)
    lost = sorted(key for key in missing if key.startswith(base) and not key.startswith(pooler_prefix))
    if lost:
        raise CheckpointError(f"{source}: {len(lost)} weights of the encoder are missing; the first is {lost[0]}")
    half = backbone.half(config)
    body = {
        backbone.our_body(key.removeprefix(base)): weight
        for key, weight in weights.items()
        if key.startswith(base) and not key.startswith(pooler_prefix)
    }
    pooler = {key.removeprefix(f"{base}{_POOLER}"): weight for key, weight in weights.items() if pooler_prefix in key}
    has_head, has_pooler = (not any(key.startswith(part) for key in missing) for part in (heads, pooler_prefix))
    return BertCheckpoint(
        half,
        {**body, **backbone.extra_body(half)},
        _head(backbone, weights) if has_head else None,
        pooler if pooler and has_pooler else None,
    )


def _head(backbone: Backbone, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for key, weight in weights.items():
        match = next(((theirs, ours) for theirs, ours in backbone.head_names if key.startswith(theirs)), None)
        if match is not None and match[1] is not None:
            found[match[1] + key.removeprefix(match[0])] = weight
    return found


def read_bert_config(source: str | PathLike[str]) -> PreTrainedConfig:
    """Read the configuration of the half that a checkpoint makes, without its weights.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, of another architecture, or needs code of its own.
    """
    backbone, config = _read_config(source)
    return backbone.half(config)


def _read_config(source: str | PathLike[str]) -> tuple[Backbone, PreTrainedConfig]:
    """The backbone of a checkpoint, and the checkpoint's own configuration."""
    with checkpoint_errors(source, _KIND):
        fields = PreTrainedConfig.get_config_dict(source)[0]
        model_type = fields.get("model_type")
        if any(name in (fields.get("auto_map") or ()) for name in _REMOTE):
            raise CheckpointError(
                f"{source}: it comes with code of its own (auto_map in config.json), which is never run; {TAKEN}"
            )
        if model_type not in BACKBONES:
            raise CheckpointError(f"{source}: {refusal(model_type)}")
        backbone = BACKBONES[model_type]
        return backbone, backbone.config_class.from_pretrained(source, is_decoder=False, add_cross_attention=False)


def _load(
    source: str | PathLike[str], backbone: Backbone, config: PreTrainedConfig
) -> tuple[PreTrainedModel, set[str]]:
    with checkpoint_errors(source, _KIND):
        model, info = backbone.checkpoint_class.from_pretrained(
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
        backbone_of(half).set_dropout(half, bert_overrides)
    wanted = overrides.get("max_position_embeddings")
    if wanted is not None:
        _set_positions(halves, wanted, may_extend=bool(overrides.get("extend_positions")))
    if own_overrides.get("decoder_positions") == "shared":
        shares_types = own_overrides.get("tie_encoder_decoder")
        for half in halves.values() if shares_types else (halves["decoder"],):
            half.type_vocab_size = max(backbone_of(half).type_rows(half), _SHARED_TYPES)
    config = BnbConfig(**halves, **own_overrides)
    cut_halves(config, *(overrides.get(name) for name in _DEPTH_OVERRIDES))
    return config


def _set_positions(halves: dict[str, PreTrainedConfig], wanted: int, *, may_extend: bool) -> None:
    for name, half in halves.items():
        backbone = backbone_of(half)
        available = backbone.positions(half)
        if wanted < 1 or (wanted > available and not may_extend):
            raise ConfigError(
                f"max_position_embeddings is {wanted}, but the {name}'s checkpoint has {available} position "
                f"embeddings: give 1 to {available}, or set extend_positions to repeat them"
            )
        backbone.set_positions(half, wanted)


def initialise_from_bert(
    model_class: type[M],
    encoder: str | PathLike[str],
    decoder: str | PathLike[str] | None,
    overrides: dict[str, Any],
) -> tuple[M, BertCheckpoint]:
    """The model that `bnb_ds.modeling.BnbForConditionalGeneration.from_bert` returns, and the encoder's checkpoint."""
    model = model_class(config_from_bert(encoder, decoder, overrides))
    encoder_bert = read_bert(encoder)
    load_encoder(model.model.encoder, model.config, encoder_bert)
    _load_writer(model, encoder_bert if decoder is None else read_bert(decoder))
    return model.eval(), encoder_bert


def load_encoder(encoder: BnbEncoder, config: BnbConfig, bert: BertCheckpoint) -> None:
    """Give an encoder the weights of a checkpoint of its family and size; it may take fewer layers, and have another
    number of positions."""
    encoder.load_state_dict(_body_of("encoder", bert, config, encoder.state_dict()))


def _body_of(half: str, bert: BertCheckpoint, config: BnbConfig, new: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layers and tables of the checkpoint that a half takes."""
    return weights_of_layers(_with_tables(bert.body, getattr(config, half), new), layers_from(config, half))


def _with_tables(body: dict[str, Tensor], config: PreTrainedConfig, new: dict[str, Tensor]) -> dict[str, Tensor]:
    """The body with the configuration's number of positions: the first ones, or all of them repeated.

    Token types that the checkpoint lacks begin as its last one, and differ by what a new model has drawn for them.
    """
    tables = {}
    if _POSITIONS in body:
        tables[_POSITIONS] = backbone_of(config).with_positions(body[_POSITIONS], config)
    if _TYPES in new:
        types, drawn = body.get(_TYPES), new[_TYPES]
        types = torch.zeros_like(drawn[:1]) if types is None else types
        tables[_TYPES] = torch.cat((types, types[-1:] + drawn[types.shape[0] :]))[: drawn.shape[0]]
    return {**body, **tables}


def _load_writer(model: BnbLMHeadModel, bert: BertCheckpoint) -> None:
    """The decoder, if there is one, and the LM head."""
    if model.model.decoder is not None:
        _load_decoder(model, bert)
    if bert.head is not None:
        model.lm_head.load_state_dict(bert.head)


def _load_decoder(model: BnbLMHeadModel, bert: BertCheckpoint) -> None:
    decoder = model.model.decoder
    assert decoder is not None
    new, unknown = decoder.load_state_dict(_body_of("decoder", bert, model.config, decoder.state_dict()), strict=False)
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
