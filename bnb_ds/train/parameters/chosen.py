"""Choose the weights of a model that a run trains: adapters, frozen parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from bnb_ds.config.parameters_section import ParametersSection
from bnb_ds.errors import ConfigError
from bnb_ds.train.parameters.adapters import add_adapters
from bnb_ds.train.parameters.heights import Places


@dataclass(frozen=True)
class Trained:
    """What a run trains.

    Attributes:
        total: number of parameters of the model that can be trained, with those of adapters.
        trained: number of those that are trained.
        heights: heights (`bnb_ds.train.parameters.heights.Places.height`) at which something is trained, from the top.
        adapted: number of matrices with adapters.
    """

    total: int
    trained: int
    heights: tuple[int, ...]
    adapted: int = 0

    @property
    def frozen(self) -> int:
        """Number of parameters that keep their values."""
        return self.total - self.trained


def names_of(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Parameter -> all of its names; one that modules share has several."""
    names: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter].append(name)
    return dict(names)


def choose(model: nn.Module, chosen: ParametersSection) -> Trained:
    """Add the adapters of a recipe, and let only those weights need a gradient that it trains.

    The others then have no gradient and no state of the optimizer, and are never sent between ranks in training.

    Args:
        model: on any device, also ``meta``.
        chosen: the recipe.

    Raises:
        ConfigError: peft is missing; the model lacks a part or a matrix that the recipe names; or nothing is left to
            train.
    """
    places, adapted = Places.in_model(model), 0
    # Some models have tables that nobody trains, such as positions of sines.
    tables = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    if chosen.lora is not None:
        adapted = add_adapters(model, chosen.lora)
        named = names_of(model)
        if "also" in chosen.lora.model_fields_set:  # not every model has a head that is no embedding
            _refuse_missing("lora.also", chosen.lora.also, places, named.values())
        for parameter, names in named.items():
            if parameter not in tables and _is_in(chosen.lora.also, places, names):
                parameter.requires_grad_(True)
    named = names_of(model)
    _refuse_missing("freeze", chosen.freeze, places, named.values())
    for parameter, names in named.items():
        if _is_in(chosen.freeze, places, names):
            parameter.requires_grad_(False)
    trained = {parameter: names for parameter, names in named.items() if parameter.requires_grad}
    if not trained:
        raise ConfigError(f"freeze {', '.join(chosen.freeze)}: nothing is left to train; remove one of them")
    heights = {height_of(places, names) for names in trained.values()}
    total, number = (sum(p.numel() for p in some if p not in tables) for some in (named, trained))
    return Trained(total, number, tuple(sorted(heights)), adapted)


def height_of(places: Places, names: Iterable[str]) -> int:
    """The height of a parameter: the lowest of its places. An output matrix that is an embedding is one."""
    return max(places.height(name) for name in names)


def _is_in(parts: Iterable[str], places: Places, names: Iterable[str]) -> bool:
    """Whether a parameter belongs to one of these parts. An output matrix that is an embedding is no head."""
    found = [places.of(name) for name in names]
    return any((all if part == "head" else any)(place.is_in(part) for place in found) for part in parts)


def _refuse_missing(key: str, parts: Iterable[str], places: Places, named: Iterable[list[str]]) -> None:
    named = list(named)
    for part in parts:
        if not any(_is_in([part], places, names) for names in named):
            raise ConfigError(f"{key} {part}: the model has no such part; remove it")
