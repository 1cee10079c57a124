"""The systems of a comparison: trained models of any kind that writes texts, each with its way of decoding."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bnb_ds.config.loading import read_value
from bnb_ds.decoding.decode import generate_rows
from bnb_ds.decoding.ngram_lm import NgramLm
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.errors import CheckpointError, ConfigError, nearest
from bnb_ds.generate.engines import DTYPES
from bnb_ds.systems.base import System
from bnb_ds.systems.baselines import AutoregressiveSystem
from bnb_ds.systems.bnb import BnbGenerator
from bnb_ds.systems.model_dir import BEST, best_model, system_and_data
from bnb_ds.systems.shown_targets import refuse_refinement_of
from bnb_ds.tasks.tokenised import Tokenised, tokenise

#: fields of `DecodeOptions` that a system may set; ``lm`` names a file
SETTINGS = (
    "beam_size",
    "beam_classes",
    "length_beam",
    "lm",
    "lm_weight",
    "word_bonus",
    "strategy",
    "lookahead_beta",
    "length_penalty",
    "merge_duplicates",
    "refinement",
    "exit_entropy",
    "blank_penalty",
    "no_repeat_ngram_size",
)
#: what an autoregressive system may set
AUTOREGRESSIVE_SETTINGS = ("num_beams",)
_FORM = "write a system as MODEL, or as NAME=MODEL,MODEL:KEY=VALUE,KEY=VALUE, with neither ':' nor '=' in NAME"
_NAME = re.compile(r"[^=:]*=")
_BEFORE_SETTINGS = re.compile(r":(?=\w+=)")
# A batch is decoded as one, as it is measured.
_WHOLE_BATCH = 1 << 30

#: writes token ids, int64 [n] each, for the token ids of some sources
Writer = Callable[[Sequence[Sequence[int]]], list[np.ndarray]]


@dataclass(frozen=True)
class Contestant:
    """One system of a comparison.

    Attributes:
        name: in tables and pictures.
        models: directories of models that differ by their seed alone; the first one is timed.
        settings: of decoding, in place of what the models were saved with.
    """

    name: str
    models: tuple[Path, ...]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Opened:
    """A model that is ready to write.

    Attributes:
        system: its adapter.
        network: in evaluation mode, on the device.
        rows: the split, tokenised for this model.
        write: decodes one batch.
        decoding: how, the model's own settings included.
    """

    system: System
    network: Any
    rows: Tokenised
    write: Writer
    decoding: dict[str, Any]

    @property
    def num_parameters(self) -> int:
        return sum(weight.numel() for weight in self.network.parameters())

    @property
    def traits(self) -> dict[str, Any]:
        """What models have in common that differ by their seed alone: name -> value."""
        target = {} if isinstance(self.system, AutoregressiveSystem) else {"target": self.network.config.target_kind}
        return {
            "kind": self.system.kind,
            **target,
            "number of parameters": self.num_parameters,
            "decoding": self.decoding,
        }

    @property
    def weights(self) -> str:
        """A hash of all weights: a copy of a model has it too."""
        digest = hashlib.sha256()
        for weight in self.network.parameters():
            digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def sources(self, ids: np.ndarray) -> list[list[int]]:
        """Token ids of some rows, int64 [B], of the split."""
        tokens, cu_seqlens = self.rows.sources(ids)
        return [row.tolist() for row in np.split(tokens, cu_seqlens[1:-1])]


def read_contestant(text: str) -> Contestant:
    """Read ``NAME=MODEL,MODEL:KEY=VALUE,KEY=VALUE``; the name and the settings may be left out.

    A path may hold ``=``, ``:`` and ``,``: of all ways to read the text, the first one holds whose models are there.

    Raises:
        ConfigError: the text has another form, a setting is unknown or given twice, or its value cannot be read.
    """
    readings = list(_readings(text))
    there = [reading for reading in readings if all(map(os.path.isdir, _paths(reading[1])))]
    name, given, settings = there[0] if there else readings[-1]
    if not there and (not all(_paths(given)) or (not name and "=" in given)):
        raise ConfigError(f"{text}: {_FORM}")
    models = tuple(map(Path, _paths(given)))
    return Contestant(name or _name_of(models[0]), models, _read_settings(text, settings))


def _readings(text: str) -> Iterator[tuple[str, str, str]]:
    """All ways to split a text into name, models and settings; the last one is the usual one."""
    named = _NAME.match(text)
    for begin in (0, named.end()) if named else (0,):
        rest = text[begin:]
        yield text[: max(begin - 1, 0)], rest, ""
        for colon in reversed(list(_BEFORE_SETTINGS.finditer(rest))):
            yield text[: max(begin - 1, 0)], rest[: colon.start()], rest[colon.end() :]


def _paths(models: str) -> list[str]:
    return [models] if os.path.isdir(models) else models.split(",")


def _read_settings(text: str, settings: str) -> dict[str, Any]:
    """``KEY=VALUE,KEY=VALUE`` of the system ``text``."""
    found: dict[str, Any] = {}
    pairs = settings.split(",") if settings else []
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"{text}: {pair!r} is no KEY=VALUE")
    known = (*SETTINGS, *AUTOREGRESSIVE_SETTINGS)
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in known:
            # What follows ':' may be meant as part of a name.
            raise ConfigError(
                f"{text}: {key!r} is no setting of decoding, and a name holds no ':'; {nearest(key, known)}"
            )
        if key in found:
            raise ConfigError(f"{text}: {key} is given twice; keep one")
        found[key] = read_value(value, f"{text}: {pair}")
        if not isinstance(found[key], str | int | float | None):
            raise ConfigError(f"{text}: {pair} is neither a word nor a number; give one, in quotes if it must be")
    return found


def _name_of(model: Path) -> str:
    return model.resolve().parent.name if model.name == BEST else model.resolve().name


def open_model(
    model: Path, settings: dict[str, Any], *, split: str | None, overrides: Sequence[str], dtype: str, device: str
) -> Opened:
    """Load a model, and tokenise the split for it.

    Args:
        model: a run with its best model, or a model directory.
        settings: see `Contestant`.
        split: of the model's task; None: its first validation split.
        overrides: ``data.KEY=VALUE``.
        dtype: a key of `bnb_ds.generate.engines.DTYPES`.
        device: ``cpu`` or ``cuda``.

    Raises:
        CheckpointError, ConfigError, DataError: the model, a setting or the data is wrong; the message names it.
    """
    directory = best_model(model)
    system, data = system_and_data(directory, None, overrides)
    if not isinstance(system, BnbGenerator | AutoregressiveSystem):
        raise ConfigError(f"{model}: gives labels; bench frontier compares models that write texts")
    _refuse_unknown(model, system, settings)
    if isinstance(system, BnbGenerator):
        refuse_refinement_of(directory, system.load_config(directory), settings)
    rows = tokenise(system.task, data, split or system.task.validation_splits[0], system.codec)
    network = system.load(directory).to(torch.device(device), DTYPES[dtype]).eval()
    if not all(bool(weight.isfinite().all()) for weight in network.parameters()):
        raise CheckpointError(
            f"{model}: has weights that are no finite numbers (in {dtype}); give a checkpoint from before its training"
            " went wrong"
        )
    write = _writer(model, system, network, settings)
    return Opened(system, network, rows, write, _decoding(system, network, settings))


class Alike:
    """Refuses models of one system that are one model, or that differ by more than their seed.

    A mean over them would be of something else, and its deviation that of no seeds.
    """

    def __init__(self, contestant: Contestant) -> None:
        self._name = contestant.name
        self._of_first: tuple[Path, dict[str, Any]] | None = None
        self._by_weights: dict[str, Path] = {}
        self._is_alone = len(contestant.models) == 1

    def add(self, model: Path, opened: Opened) -> None:
        """Compare the next model with those before.

        Raises:
            ConfigError: it has the weights of another one, or another kind, target, size or decoding.
        """
        if self._is_alone:
            return
        traits = opened.traits
        first, expected = self._of_first = self._of_first or (model, traits)
        for trait in {**expected, **traits}:
            own, other = traits.get(trait), expected.get(trait)
            if own != other:
                raise ConfigError(
                    f"{model}: its {trait} is {own}, and that of {first} is {other}; models of one system"
                    f" ({self._name}) differ by their seed alone: make two systems of them"
                )
        weights = opened.weights
        if weights in self._by_weights:
            raise ConfigError(
                f"{model}: has the same weights as {self._by_weights[weights]}; give each model of a system"
                f" ({self._name}) once"
            )
        self._by_weights[weights] = model


def _decoding(system: System, network: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of decoding that hold, but for defaults of all models."""
    if isinstance(system, AutoregressiveSystem):
        return {"num_beams": network.model.generation_config.num_beams or 1, **settings}
    chosen = {**network.config.decoding, **settings}
    if network.config.target_kind == "dag":
        options = DecodeOptions.of(None, {name: value for name, value in chosen.items() if name != "lm"})
        chosen = {"strategy": options.dag_options().strategy, **chosen}
    return chosen


def _refuse_unknown(model: Path, system: System, settings: dict[str, Any]) -> None:
    known = AUTOREGRESSIVE_SETTINGS if isinstance(system, AutoregressiveSystem) else SETTINGS
    for key in settings:
        if key not in known:
            raise ConfigError(f"{model}: a model of kind {system.kind} has no setting {key!r}; {nearest(key, known)}")
    beams = settings.get("num_beams", 1)
    if isinstance(beams, bool) or not isinstance(beams, int) or beams < 1:
        raise ConfigError(f"{model}: num_beams is {beams!r}; give a whole number of at least 1")


def _writer(model: Path, system: System, network: Any, settings: dict[str, Any]) -> Writer:
    if isinstance(system, AutoregressiveSystem):
        return partial(_write_autoregressive, system, network, settings.get("num_beams"))
    changes = {**settings, "token_budget": _WHOLE_BATCH}
    if settings.get("lm") is not None:
        changes["lm"] = NgramLm(str(settings["lm"]), system.codec.target_rules(network.config.vocab_size))
    options = DecodeOptions.of(DecodeOptions.of_model(network.config), changes)
    try:
        options.check(network.config)
    except ConfigError as error:
        raise ConfigError(f"{model}: {error}") from None
    return partial(_write_in_parallel, network, options)


def _write_autoregressive(
    system: AutoregressiveSystem, network: Any, num_beams: int | None, rows: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    with torch.inference_mode():
        return system.write(network, [list(row) for row in rows], num_beams)


def _write_in_parallel(network: Any, options: DecodeOptions, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    with torch.inference_mode():
        return [np.array(ids, np.int64) for ids, _ in generate_rows(network, rows, options)]
