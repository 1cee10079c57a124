"""Which layers of a deep model a shallow one is made of, and which ones it learns from. Layers are counted from 0."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from bnb_ds.errors import ConfigError
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.network import BnbPreTrainedModel

M = TypeVar("M", bound=BnbPreTrainedModel)

HALVES = ("encoder", "decoder")
#: a weight of one layer, under the names of a half; behind a layer of the decoder there may be one of its feedback
_OF_A_LAYER = re.compile(r"\b(layer|feedback)\.(\d+)\.")


def taken_layers(number: int, available: int) -> list[int]:
    """The layers that a stack of ``number`` layers takes from one of ``available``.

    They are evenly spaced, the first and the last among them; a single layer is the first. Of 12 layers, 6 are
    0, 2, 4, 7, 9 and 11.

    Source: Shleifer and Rush, Pre-trained Summarization Distillation, 2020, section 3.
    """
    steps = max(number - 1, 1)
    return [(2 * place * (available - 1) + steps) // (2 * steps) for place in range(number)]  # rounded half up


def taught_layers(number: int, available: int) -> list[int]:
    """For each of a student's ``number`` layers, the one of a teacher's ``available`` whose output it learns.

    Evenly spaced from the end, so that the last layer learns from the last.

    Source: Jiao et al., TinyBERT, Findings of EMNLP 2020, section 3.1.
    """
    return [-(-(place + 1) * available // number) - 1 for place in range(number)]


def cut_halves(config: BnbConfig, encoder_layers: int | None, decoder_layers: int | None) -> None:
    """Give the halves fewer layers, in place. ``config.taken_layers`` records which ones they take.

    Args:
        config: of the whole model.
        encoder_layers, decoder_layers: layers of the halves; None: all.

    Raises:
        ConfigError: a half has fewer layers, or the halves share weights and would have different depths.
    """
    if not config.has_decoder:
        if decoder_layers is not None:
            raise ConfigError(f"decoder_layers is {decoder_layers}: the model has no decoder; set encoder_layers")
        decoder_layers = encoder_layers  # its decoder repeats the encoder
    taken = {}
    for half, number in zip(HALVES, (encoder_layers, decoder_layers), strict=True):
        available = getattr(config, half).num_hidden_layers
        if number is None or number == available:
            continue
        if not 1 <= number <= available:
            raise ConfigError(f"{half}_layers is {number}, but the checkpoint has {available} layers: give fewer")
        taken[half] = taken_layers(number, available)
        getattr(config, half).num_hidden_layers = number
    if taken:
        config.taken_layers = taken
        config.check()


def layers_from(config: BnbConfig, half: str) -> list[int]:
    """The layers of a checkpoint that a half takes, in order."""
    taken = (config.taken_layers or {}).get(half)
    return list(range(getattr(config, half).num_hidden_layers)) if taken is None else taken


def weights_of_layers(weights: dict[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """The weights of a half with these layers only, which are renumbered; other weights stay.

    Args:
        weights: name -> weight.
        layers: in their new order.
    """
    place = {layer: number for number, layer in enumerate(layers)}

    def renamed(name: str) -> str | None:
        found = _OF_A_LAYER.search(name)
        if found is None:
            return name
        number = place.get(int(found[2]))
        return None if number is None else f"{name[: found.start(2)]}{number}{name[found.end(2) :]}"

    return {new: weight for name, weight in weights.items() if (new := renamed(name)) is not None}


def shallow_model(whole: M, config: BnbConfig) -> M:
    """A model of a configuration that `cut_halves` has cut, with weights of the whole model.

    What reads the predictions of a layer that is no longer the last keeps what the checkpoint has for it, and is new
    where the checkpoint has nothing.
    """
    model = type(whole)(copy.deepcopy(config))
    weights = dict(whole.state_dict())
    for half in HALVES:
        prefix = re.compile(rf"^(model\.)*{half}\.")
        of_half = {name: weight for name, weight in weights.items() if prefix.match(name)}
        others = {name: weight for name, weight in weights.items() if name not in of_half}
        weights = {**others, **weights_of_layers(of_half, layers_from(config, half))}
    # Nothing reads the predictions of a layer that has become the last one.
    known = set(model.state_dict())
    weights = {name: weight for name, weight in weights.items() if ".feedback." not in name or name in known}
    missing, unknown = model.load_state_dict(weights, strict=False)
    assert not unknown, f"a shallow model has no place for {unknown}"
    assert all(".feedback." in name for name in missing), f"not initialised: {missing}"
    return model.train(whole.training)


def depth_line(config: BnbConfig) -> str | None:
    """A line for the user: the depths of the halves and which layers they take; None if there is nothing to say."""
    depths = {half: getattr(config, half).num_hidden_layers for half in HALVES[: 1 + config.has_decoder]}
    taken = config.taken_layers or {}
    if len(set(depths.values())) == 1 and not taken:
        return None
    said = [f"{half} {depths[half]}{_said(taken.get(half))}" for half in depths]
    return f"layers       {', '.join(said)}"


def _said(layers: list[int] | None) -> str:
    return "" if layers is None else f" (from layers {' '.join(map(str, layers))} of the checkpoint)"
