"""Loads models of the reference implementation (aistairc/BERT-NAR-BERT), weight by weight.

The reference uses a fork of transformers. Its ``save_pretrained`` writes ``config.json``, and either
``model.safetensors`` or ``pytorch_model.bin``. From the latter only tensors are read, so no code in it can run.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.activations import ACT2FN

from bnb_ds.common.hub import checkpoint_errors
from bnb_ds.errors import CheckpointError, ConfigError, nearest
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.from_bert import check_overrides
from bnb_ds.model.lm_head_model import BnbLMHeadModel
from bnb_ds.model.network import OPTIONAL_PARTS

M = TypeVar("M", bound=BnbLMHeadModel)

_HEAD = "decoder.cls.predictions."

#: second names of the tied output matrix and its bias, only in pytorch_model.bin; this bias replaces the other one
_HEAD_MATRIX, _HEAD_BIAS = f"{_HEAD}decoder.weight", f"{_HEAD}decoder.bias"
#: a buffer that needs no loading, and BERT's pooler, which the reference never uses: a classifier begins with it, see
#: `reference_pooler`
_UNUSED = ("position_ids", "pooler.dense.weight", "pooler.dense.bias")

#: beginnings of our names -> the reference's names for them
_RENAMED = (
    ("model.encoder.layer.", "encoder.encoder.layer."),
    ("model.encoder.", "encoder."),
    ("model.latent.", "encoder.linear."),
    ("model.decoder.embeddings.latent_projection.", "decoder.linear."),
    ("model.decoder.layer.", "decoder.bert.encoder.layer."),
    ("model.decoder.", "decoder.bert."),
    ("model.enc_to_dec_proj.", "enc_to_dec_proj."),
    ("lm_head.", _HEAD),
)


def load_reference(model_class: type[M], directory: str | PathLike[str], overrides: dict[str, Any]) -> M:
    """Load a model; see `bnb_ds.modeling.BnbForConditionalGeneration.from_reference`."""
    directory = Path(directory)
    config = reference_config(directory, overrides)
    with checkpoint_errors(directory / "config.json", "configuration of a BERT-NAR-BERT"):
        model = model_class(config)
    path, weights = read_tensors(directory)
    is_new = re.compile("|".join((r"^links\.", *OPTIONAL_PARTS)))
    ours = {name: parameter for name, parameter in model.state_dict().items() if not is_new.search(name)}
    model.load_state_dict(_matched(path, weights, ours, model.config.latent_size), strict=False)
    decoder = model.model.decoder
    assert decoder is not None, "the reference has one"
    gate = decoder.embeddings.token_gate
    if gate is not None:
        torch.nn.init.zeros_(gate)  # the reference's slots never held a token
    return model.eval()


def _refuse_activations(path: Path, configs: dict[str, Any]) -> None:
    for name, values in configs.items():
        refuse_activation(path, values.get("hidden_act", "gelu"), f"{name}.hidden_act")


def refuse_activation(path: Path, activation: Any, field: str) -> None:
    """Raise CheckpointError for an activation that transformers has not; its own error names neither file nor field."""
    if not isinstance(activation, str) or activation not in ACT2FN:
        raise CheckpointError(f"{path}: {field} {activation!r}: no such activation; {nearest(activation, ACT2FN)}")


def reference_config(directory: Path, overrides: dict[str, Any]) -> BnbConfig:
    """The configuration of a model that the reference implementation saved.

    Raises:
        CheckpointError: ``config.json`` is missing, damaged or of another kind of model.
        ConfigError: an unknown override, or a value out of range.
    """
    if not overrides.get("has_decoder", True):
        raise ConfigError(
            "has_decoder is false, but the reference implementation's models have a decoder: leave it out"
        )
    path = directory / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        halves = {half: values[half] for half in ("encoder", "decoder")}
        latent_size, decoder_latent_size = (halves[half]["latent_size"] for half in halves)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give a directory that the reference's own tools saved") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: not the configuration of a BERT-NAR-BERT of the reference: {type(error).__name__} {error}; it "
            "needs encoder and decoder, with latent_size in both"
        ) from None
    if latent_size != decoder_latent_size:
        raise CheckpointError(
            f"{path}: latent_size is {latent_size} in the encoder and {decoder_latent_size} in the decoder; make them"
            " equal"
        )
    if "latent_size" in overrides:
        raise ConfigError("from_reference has no setting 'latent_size': the checkpoint decides it")
    check_overrides("from_reference", overrides)
    _refuse_activations(path, halves)
    known = BnbConfig().encoder.to_dict()
    fields: dict[str, Any] = {
        half: {name: value for name, value in bert.items() if name in known} for half, bert in halves.items()
    }
    pad = values.get("pad_token_id")
    defaults = {
        "decoder_length": "padded",
        "decoder_length_ratio": 1.0,
        "latent_dropout": values.get("dropout_prob", 0.0),
        "loss_reduction": "sample" if overrides.get("decoder_length") != "predicted" else "token",
        "blank_token_id": pad or 0,
        "pad_token_id": pad,
        "bos_token_id": values.get("decoder_start_token_id"),
        "eos_token_id": values.get("eos_token_id"),
    }
    with checkpoint_errors(path, "configuration of a BERT-NAR-BERT"):
        return BnbConfig(**fields, latent_size=latent_size, **{**defaults, **overrides})


def reference_pooler(directory: Path, hidden_size: int) -> tuple[dict[str, Tensor], bool]:
    """BERT's pooler of a model that the reference saved. It never uses its pooler, but a classifier begins with one.

    Args:
        directory: a directory that `load_reference` has read.
        hidden_size: H, of its encoder.

    Returns:
        ``pooler.dense.weight`` ``[H, H]`` and ``pooler.dense.bias`` ``[H]`` of the encoder, float32; empty if there is
        no whole one. And whether a part of one is left out.

    Raises:
        CheckpointError: the weights cannot be read.
    """
    _, weights = read_tensors(directory)
    shapes = {"pooler.dense.weight": [hidden_size, hidden_size], "pooler.dense.bias": [hidden_size]}
    found = {name: weights[f"encoder.{name}"].float() for name in shapes if f"encoder.{name}" in weights}
    if {name: list(weight.shape) for name, weight in found.items()} == shapes:
        return found, False
    return {}, bool(found)


def was_vae(directory: Path) -> bool:
    """Whether the reference drew latents in training (``is_vae``). Not when it decodes: there it takes their mean.

    Call it with a directory that `reference_config` has read.
    """
    return bool(json.loads((directory / "config.json").read_text(encoding="utf-8")).get("is_vae"))


def read_tensors(directory: Path) -> tuple[Path, dict[str, Tensor]]:
    """The weights in ``model.safetensors`` or ``pytorch_model.bin`` of a directory, and the path of that file.

    Raises:
        CheckpointError: there is no such file, or it holds something other than tensors.
    """
    readers: dict[str, Callable[[Path], dict[str, Tensor]]] = {
        "model.safetensors": load_file,
        # weights_only: this unpickler accepts tensors and nothing that could run code.
        "pytorch_model.bin": lambda path: torch.load(path, map_location="cpu", weights_only=True),
    }
    for name, read in readers.items():
        path = directory / name
        if not path.is_file():
            continue
        try:
            weights = read(path)
        except (
            OSError,
            SafetensorError,
            RuntimeError,
            EOFError,
            ValueError,
            KeyError,
            pickle.UnpicklingError,
        ) as error:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise CheckpointError(f"{path}: cannot be read as tensors: {reason}") from None
        if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
            raise CheckpointError(f"{path}: holds something other than a dictionary of tensors")
        return path, weights
    raise CheckpointError(f"{directory}: holds neither {' nor '.join(readers)}; copy the weights there")


def _matched(path: Path, weights: dict[str, Tensor], ours: dict[str, Tensor], latent_size: int) -> dict[str, Tensor]:
    """The reference's weights under our names.

    Raises:
        CheckpointError: a weight is missing, left over or has another shape; the message names all of them.
    """
    faults, matched = [], {}
    if _HEAD_BIAS in weights:
        weights = {**weights, f"{_HEAD}bias": weights[_HEAD_BIAS]}
    for ours_name, parameter in ours.items():
        name = their_name(ours_name)
        if name not in weights:
            faults.append(f"{name} is missing")
            continue
        weight, shape = weights[name], list(parameter.shape)
        if ours_name.startswith("model.latent."):
            shape[0] *= 2  # the second half is the log variance of a VAE, which the reference does not read to decode
        if list(weight.shape) != shape:
            faults.append(f"{name} has shape {list(weight.shape)}, not {shape}")
        matched[ours_name] = weight[:latent_size] if ours_name.startswith("model.latent.") else weight
    expected = {their_name(name) for name in ours} | {_HEAD_MATRIX, _HEAD_BIAS}
    faults += [f"{name} is unknown" for name in weights if name not in expected and not name.endswith(_UNUSED)]
    if faults:
        raise CheckpointError(f"{path}: does not fit its config.json: {'; '.join(faults)}")
    return matched


def their_name(ours: str) -> str:
    """The reference's name of a weight of `bnb_ds.modeling.BnbForConditionalGeneration`."""
    for prefix, theirs in _RENAMED:
        if ours.startswith(prefix):
            return theirs + ours.removeprefix(prefix)
    raise AssertionError(f"no counterpart of {ours}")
