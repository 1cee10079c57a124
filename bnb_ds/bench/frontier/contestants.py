"""The systems of a comparison: trained models of any kind that writes texts, each with its way of decoding."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from bnb_ds.decoding.decode import generate_rows
from bnb_ds.decoding.ngram_lm import NgramLm
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.errors import CheckpointError, ConfigError, nearest
from bnb_ds.generate.engines import DTYPES
from bnb_ds.systems.base import System
from bnb_ds.systems.baselines import AutoregressiveSystem
from bnb_ds.systems.bnb import BnbGenerator
from bnb_ds.systems.model_dir import BEST, best_model, system_and_data
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
_FORM = re.compile(r"(?:(?P<name>[^=:]*)=)?(?P<models>[^=]+?)(?::(?P<settings>\w+=.*))?")
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

    def sources(self, ids: np.ndarray) -> list[list[int]]:
        """Token ids of some rows, int64 [B], of the split."""
        tokens, cu_seqlens = self.rows.sources(ids)
        return [row.tolist() for row in np.split(tokens, cu_seqlens[1:-1])]


def read_contestant(text: str) -> Contestant:
    """Read ``NAME=MODEL,MODEL:KEY=VALUE,KEY=VALUE``; the name and the settings may be left out.

    Raises:
        ConfigError: the text has another form.
    """
    if Path(text).is_dir():
        return Contestant(_name_of(Path(text)), (Path(text),))
    found = _FORM.fullmatch(text)
    if found is None or not all(found["models"].split(",")):
        raise ConfigError(f"{text}: write a system as MODEL, or as NAME=MODEL,MODEL:KEY=VALUE,KEY=VALUE")
    models = tuple(Path(model) for model in found["models"].split(","))
    settings: dict[str, Any] = {}
    for pair in (found["settings"] or "").split(",") if found["settings"] else ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"{text}: {pair!r} is no KEY=VALUE")
        settings[key] = yaml.safe_load(value)
    return Contestant(found["name"] or _name_of(models[0]), models, settings)


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
    rows = tokenise(system.task, data, split or system.task.validation_splits[0], system.codec)
    network = system.load(directory).to(torch.device(device), DTYPES[dtype]).eval()
    if not all(bool(weight.isfinite().all()) for weight in network.parameters()):
        raise CheckpointError(
            f"{model}: has weights that are no finite numbers (in {dtype}); give a checkpoint from before its training"
            " went wrong"
        )
    return Opened(system, network, rows, _writer(system, network, settings), _decoding(system, network, settings))


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


def _writer(system: System, network: Any, settings: dict[str, Any]) -> Writer:
    if isinstance(system, AutoregressiveSystem):
        return partial(_write_autoregressive, system, network, settings.get("num_beams"))
    changes = {**settings, "token_budget": _WHOLE_BATCH}
    if settings.get("lm") is not None:
        changes["lm"] = NgramLm(str(settings["lm"]), system.codec.target_rules(network.config.vocab_size))
    options = DecodeOptions.of(DecodeOptions.of_model(network.config), changes)
    options.check(network.config)
    return partial(_write_in_parallel, network, options)


def _write_autoregressive(
    system: AutoregressiveSystem, network: Any, num_beams: int | None, rows: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    with torch.inference_mode():
        return system.write(network, [list(row) for row in rows], num_beams)


def _write_in_parallel(network: Any, options: DecodeOptions, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    with torch.inference_mode():
        return [np.array(ids, np.int64) for ids, _ in generate_rows(network, rows, options)]
