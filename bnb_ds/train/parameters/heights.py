"""Where in a model a weight lies, read off its name: half, part, layer, and height below the top.

Names are those of BERT-NAR-BERT and of the families of transformers that serve as baselines (BERT, BERT2BERT, BART,
Marian, T5, GPT) or as backbones (RoBERTa, ELECTRA, DistilBERT, ModernBERT).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

_LAYER = re.compile(r"(?:^|\.)(?:layer|layers|h|block|feedback)\.(\d+)(?:\.|$)")
_CROSS = ("crossattention", "encoder_attn", "EncDecAttention")
_ATTENTION = ("attention", "self_attn", "SelfAttention", "attn", *_CROSS)
#: parts of embeddings that a BERT-NAR-BERT has of its own; new ones are trained with the heads
_NEW_PARTS = ("latent_projection", "token_gate")
#: plain name -> the names of such a matrix
_ROLES = {
    "query": ("query", "q_proj", "q", "q_lin"),
    "key": ("key", "k_proj", "k", "k_lin"),
    "value": ("value", "v_proj", "v", "v_lin"),
    "query-key-value": ("c_attn", "Wqkv"),
}


@dataclass(frozen=True)
class Place:
    """Where a weight lies.

    Attributes:
        half: None for what belongs to no half, such as a classifier.
        part: embeddings, a layer, or what is in front of and behind the layers.
        layer: number of the layer from the bottom, with part ``layer``.
        is_cross: whether it belongs to cross-attention.
    """

    half: Literal["encoder", "decoder"] | None
    part: Literal["embeddings", "layer", "head"]
    layer: int = 0
    is_cross: bool = False

    def is_in(self, part: str) -> bool:
        """Whether it belongs to a part of `bnb_ds.config.parameters_section.PARTS`."""
        if part == "cross-attention":
            return self.is_cross
        return part in (self.half, self.part)


def place_of(name: str, *, has_decoder: bool = True) -> Place:
    """The place of a weight.

    Args:
        name: of the parameter.
        has_decoder: whether the model has two halves. Else its layers and embeddings are those of an encoder.
    """
    path = name.split(".")
    half = next((token for token in path if token in ("encoder", "decoder")), None)
    layer = _LAYER.search(name)
    if layer is not None:
        is_cross = any(token in _CROSS for token in path)
        return Place(_half(half, has_decoder), "layer", int(layer[1]), is_cross=is_cross)
    is_embedding = any("embed" in token or token == "shared" for token in path)
    if is_embedding and not any(token in _NEW_PARTS for token in path):
        return Place(_half(half, has_decoder), "embeddings")
    return Place(_half(half, True), "head")


def _half(half: str | None, has_decoder: bool) -> Literal["encoder", "decoder"] | None:
    if half == "decoder":
        return "decoder"
    return "encoder" if half == "encoder" or not has_decoder else None


class Places:
    """The places of all parameters of a model; one that is shared has several.

    Args:
        names: names of the parameters, those of shared ones all.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(names)
        self._has_decoder = any("decoder" in name.split(".") for name in self._names)
        self._layers: dict[str | None, int] = defaultdict(int)
        for name in self._names:
            place = self.of(name)
            if place.part == "layer":
                self._layers[place.half] = max(self._layers[place.half], place.layer + 1)

    @classmethod
    def in_model(cls, model: nn.Module) -> Places:
        """The places in a model."""
        return cls(name for name, _ in model.named_parameters(remove_duplicate=False))

    def of(self, name: str) -> Place:
        """The place of the parameter of a name."""
        return place_of(name, has_decoder=self._has_decoder)

    def height(self, name: str) -> int:
        """How far a parameter lies below the top of its half: heads 0, the top layer 1, embeddings the most."""
        place = self.of(name)
        if place.part == "head":
            return 0
        if place.part == "embeddings":
            return 1 + (self._layers[place.half] if place.half else max(self._layers.values(), default=0))
        return self._layers[place.half] - place.layer


def roles_of(module: str) -> frozenset[str]:
    """The names of `bnb_ds.config.parameters_section.TARGETS` that fit a matrix of a layer; empty outside layers."""
    place, path = place_of(module), module.split(".")
    if place.part != "layer" or "feedback" in path:
        return frozenset()
    within = module[_last_end(module) :].split(".")
    leaf, found = path[-1], set()
    in_attention = any(token in _ATTENTION for token in within[:-1])
    for role, names in _ROLES.items():
        if leaf in names:
            found.add(role)
    if in_attention:
        found.add("cross-attention" if place.is_cross else "self-attention")
        if not found & set(_ROLES):
            found |= {"attention-output", "dense"}
    else:
        found |= {"feed-forward", "dense"}
    return frozenset(found)


def _last_end(name: str) -> int:
    """Where the number of the layer ends."""
    found = _LAYER.search(name)
    assert found is not None
    return found.end(1) + 1


def matrices(model: nn.Module) -> dict[str, frozenset[str]]:
    """Module -> `roles_of` it, of all matrices in the layers of a model."""
    found = {name: roles_of(name) for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    return {name: roles for name, roles in found.items() if roles}
