"""The file of ``--space``: which settings a search varies, and between which values.

It has two blocks, because a setting has one home: ``recipe`` names fields of the recipe, ``deepspeed`` those of the
DeepSpeed JSON (the learning rate is one of them). A list holds the values to choose from. A range has ``low`` and
``high``, both included, and may have ``log: true`` or a ``step``.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from bnb_ds.config.loading import YAML_ERRORS
from bnb_ds.errors import ConfigError

RECIPE, DEEPSPEED = "recipe", "deepspeed"
_OF_A_RANGE = ("low", "high", "log", "step")
#: fields of a recipe that each trial has for itself
_NOT_VARIED = ("output_dir", "tracking")


@dataclass(frozen=True)
class Dimension:
    """One setting that is varied.

    Attributes:
        home: the file that holds it, ``recipe`` or ``deepspeed``.
        key: its dotted path there.
        choices: the values to choose from; empty for a range.
        low, high: ends of a range.
        log: a range is searched on a logarithmic scale.
        step: between values of a range, or None.
    """

    home: str
    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None

    @property
    def name(self) -> str:
        return f"{self.home}.{self.key}"

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that show whether the setting takes what the space gives it."""
        return self.choices or (self.low, self.high)

    def suggest(self, trial: Any) -> Any:
        """The value that a trial of Optuna should have."""
        if self.choices:
            return json.loads(trial.suggest_categorical(self.name, [json.dumps(choice) for choice in self.choices]))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.name, self.low, self.high, step=self.step or 1, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)


@dataclass(frozen=True)
class Settings:
    """A recipe and a DeepSpeed JSON as nested dictionaries, not yet validated."""

    recipe: dict[str, Any]
    deepspeed: dict[str, Any]

    def changed(self, values: Mapping[Dimension, Any]) -> Settings:
        """A copy with some settings replaced.

        Raises:
            ConfigError: a part of a dotted path is a value and no section.
        """
        homes = {RECIPE: copy.deepcopy(self.recipe), DEEPSPEED: copy.deepcopy(self.deepspeed)}
        for dimension, value in values.items():
            *parents, leaf = dimension.key.split(".")
            node = homes[dimension.home]
            for parent in parents:
                if node.get(parent) is None:
                    node[parent] = {}
                node = node[parent]
                if not isinstance(node, dict):
                    raise ConfigError(f"--space: {dimension.name}: {parent} is a value, not a section")
            node[leaf] = value
        return Settings(homes[RECIPE], homes[DEEPSPEED])


def read_space(path: Path) -> list[Dimension]:
    """Read and check the file of ``--space``.

    Raises:
        ConfigError: it cannot be read, or a setting in it is wrong; the message names file and setting.
    """
    try:
        blocks = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--space {path}: cannot be read: {error}") from None
    except YAML_ERRORS as error:
        raise ConfigError(f"--space {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(blocks, dict) or not set(blocks) <= {RECIPE, DEEPSPEED} or not any(blocks.values()):
        raise ConfigError(f"--space {path}: give the blocks {RECIPE} and {DEEPSPEED}, or one of them")
    faults: list[str] = []
    found = []
    for home, block in blocks.items():
        if not isinstance(block, dict):
            faults.append(f"{home}: name settings and their values")
            continue
        for key, values in block.items():
            try:
                found.append(_dimension(home, str(key), values))
            except ValueError as error:
                faults.append(f"{home}.{key}: {error}")
    if faults:
        raise ConfigError(f"--space {path}: " + "; ".join(faults))
    return found


def combinations(space: list[Dimension]) -> Iterator[dict[str, Any]]:
    """All combinations of a space of lists, as parameters of Optuna; of a space with a range there are none."""
    if all(dimension.choices for dimension in space):
        for values in product(*(dimension.choices for dimension in space)):
            yield {dimension.name: json.dumps(value) for dimension, value in zip(space, values, strict=True)}


def _dimension(home: str, key: str, values: Any) -> Dimension:
    if home == RECIPE and key.split(".")[0] in _NOT_VARIED:
        raise ValueError("each trial has its own; remove it")
    if isinstance(values, list):
        if not values:
            raise ValueError("the list of values is empty")
        return Dimension(home, key, tuple(_number(value) for value in values))
    if not isinstance(values, dict) or not {"low", "high"} <= set(values) <= set(_OF_A_RANGE):
        raise ValueError("give a list of values, or low and high, with log or step if you like")
    low, high, step = (_number(values.get(name)) for name in ("low", "high", "step"))
    numbers = [low, high] if step is None else [low, high, step]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers) or not low < high:
        raise ValueError("low must be a number below high, and step a number")
    log = values.get("log", False)
    if not isinstance(log, bool) or (log and (low <= 0 or step is not None)):
        raise ValueError("log is true or false; a logarithmic range begins above 0 and has no step")
    if step is not None and step <= 0:
        raise ValueError("step must be above 0")
    return Dimension(home, key, (), low, high, log, step)


def _number(value: Any) -> Any:
    """YAML takes 1e-5 for a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
