"""Score every model of a comparison, then time the systems in turn, and keep what is done in one JSON file.

A *round* decodes the sentences with every system once at every batch size. Systems take turns after each batch, so that
slow phases of the machine affect all of them. What is finished is written at once; a repeated command goes on from it.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bnb_ds.bench.frontier.contestants import Alike, Contestant, Opened, open_model
from bnb_ds.bench.measure import stopwatch
from bnb_ds.common.files import write_atomic
from bnb_ds.errors import ConfigError, DataError, nearest
from bnb_ds.evaluate.scoring import DECIMALS, finite_or_none, score_names, scores_of
from bnb_ds.evaluate.split import one_line
from bnb_ds.generate.open_model import fingerprint
from bnb_ds.systems.model_dir import best_model
from bnb_ds.tasks.task import Task

#: in the output directory: what is done
STATE_FILE = "state.json"
_SCORING_BATCH = 32

#: batch size -> wall-clock and CPU seconds of all sentences, one pair for each round
Speeds = dict[int, list[tuple[float, float]]]


@dataclass(frozen=True)
class Setting:
    """What is measured, and how.

    Attributes:
        split: of the models' task; None: its first validation split.
        overrides: ``data.KEY=VALUE``.
        batch_sizes: sentences decoded together.
        rounds: how often each system decodes the sentences; 0: speed is not measured.
        sentences: how many, spread evenly over the split; None: all.
        dtype: number format of all systems.
        device: ``cpu`` or ``cuda``.
        threads: on a CPU.
    """

    split: str | None = None
    overrides: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = (1, 32)
    rounds: int = 3
    sentences: int | None = None
    dtype: str = "fp32"
    device: str = "cpu"
    threads: int = 2

    @property
    def hardware(self) -> str:
        """Where it is measured."""
        return torch.cuda.get_device_name() if self.device == "cuda" else f"CPU, {self.threads} threads"


@dataclass
class Outcome:
    """What was found about one system.

    Attributes:
        contestant: the system.
        kind: ``model.kind`` of its models.
        decoding: settings of its first model.
        num_parameters: of its first model.
        tokenizer: hash of its tokenizers.
        scores: score -> its value for each model; None: not a number.
        speeds: batch size -> rounds.
    """

    contestant: Contestant
    kind: str
    decoding: dict[str, Any]
    num_parameters: int
    tokenizer: str
    scores: dict[str, list[float | None]]
    speeds: Speeds = field(default_factory=dict)

    def mean_sd(self, score: str) -> tuple[float, float | None] | None:
        """Mean and sample standard deviation (None for one model) of a score; None if one value is not a number."""
        values = self.scores[score]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        return statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None

    def seconds(self, batch_size: int) -> float:
        """Median over the rounds of the wall-clock seconds of all sentences."""
        return statistics.median(wall for wall, _ in self.speeds[batch_size])


@dataclass(frozen=True)
class Comparison:
    """The outcomes of all systems on one split.

    Attributes:
        task, split: names.
        main_score: of the task.
        num_rows: rows that were scored.
        num_timed: sentences that were timed.
        outcomes: one for each system.
    """

    task: str
    split: str
    main_score: str
    num_rows: int
    num_timed: int
    outcomes: list[Outcome]


def measure(contestants: Sequence[Contestant], setting: Setting, state: Path, scores: Sequence[str] = ()) -> Comparison:
    """Score and time systems; go on with what ``state``, a JSON file, holds.

    All models are opened before the first one is scored: what is wrong with the last one would be told hours later.

    Args:
        contestants: the systems.
        setting: what is measured.
        state: a JSON file; it need not exist.
        scores: names that the outcomes must have.

    Raises:
        CheckpointError, ConfigError, DataError: a model, a setting, a score or the data is wrong; the message names it.
    """
    _refuse_equal_names(contestants)
    known = _Known(state)
    outcomes, first = [], {}
    # model of a contestant -> key of its scores
    keys: dict[tuple[str, Path], str] = {}
    references: list[str] | None = None
    for contestant in contestants:
        alike = Alike(contestant)
        for number, model in enumerate(contestant.models):
            opened = _open(model, contestant, setting)
            task = opened.system.task
            _check_scores(task, scores)
            references = _same_references(model, opened, references)
            alike.add(model, opened)
            keys[contestant.name, model] = _score_key(model, contestant, opened, setting)
            if number == 0:
                outcomes.append(_outcome(contestant, opened))
                if setting.rounds:
                    first[contestant.name] = opened
    num_rows = len(opened.rows)
    del opened
    for outcome in outcomes:
        contestant, scored = outcome.contestant, []
        for number, model in enumerate(contestant.models):
            kept = None if number else first.get(contestant.name)
            scored.append(_scores(model, contestant, keys[contestant.name, model], kept, setting, known))
        outcome.scores = {name: [values[name] for values in scored] for name in scored[0]}
    num_timed = _time(outcomes, first, setting, known) if setting.rounds else 0
    split = setting.split or task.validation_splits[0]
    return Comparison(task.name, split, task.main_score, num_rows, num_timed, outcomes)


def _check_scores(task: Task, names: Sequence[str]) -> None:
    known = score_names(task)
    for name in names:
        if name not in known:
            raise ConfigError(f"--score {name}: is not a score of {task.name}; {nearest(name, known)}")


def _outcome(contestant: Contestant, opened: Opened) -> Outcome:
    """What is known without a score."""
    system = opened.system
    return Outcome(contestant, system.kind, opened.decoding, opened.num_parameters, system.codec.fingerprint, {})


def _refuse_equal_names(contestants: Sequence[Contestant]) -> None:
    names = [contestant.name for contestant in contestants]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name}: two systems have this name; write NAME=MODEL to give them others")


def _open(model: Path, contestant: Contestant, setting: Setting) -> Opened:
    return open_model(
        model,
        contestant.settings,
        split=setting.split,
        overrides=setting.overrides,
        dtype=setting.dtype,
        device=setting.device,
    )


def _same_references(model: Path, opened: Opened, references: list[str] | None) -> list[str]:
    own = [one_line(text) for text in opened.rows.references()]
    if references is not None and own != references:
        raise ConfigError(
            f"{model}: its {opened.system.task.name} rows have other references than those of the model before; give"
            " models of one task, and the same data to all with --set data.SPLIT=FILE"
        )
    return own


def _score_key(model: Path, contestant: Contestant, opened: Opened, setting: Setting) -> str:
    return _key("scores", _identity(model, contestant), opened.rows.fingerprint, setting.dtype, setting.device)


def _scores(
    model: Path, contestant: Contestant, key: str, opened: Opened | None, setting: Setting, known: _Known
) -> dict[str, float | None]:
    """The scores of a model: those that are known under the key, or new ones. None: it is to be opened again."""
    if key not in known.scores:
        print(f"scoring: {contestant.name}, {model}", file=sys.stderr, flush=True)
        if opened is None:
            opened = _open(model, contestant, setting)
            key = _score_key(model, contestant, opened, setting)  # a run that goes on may have another best model now
        known.add_scores(key, _score(opened))
    return known.scores[key]


def _score(opened: Opened) -> dict[str, float | None]:
    outputs: dict[int, np.ndarray] = {}
    order = np.argsort(opened.rows.source_lengths(np.arange(len(opened.rows))), kind="stable")
    for begin in range(0, order.size, _SCORING_BATCH):
        ids = order[begin : begin + _SCORING_BATCH]
        outputs |= dict(zip(ids.tolist(), opened.write(opened.sources(ids)), strict=True))
    system = opened.system
    texts = system.texts([outputs[number] for number in range(len(opened.rows))])
    references = [one_line(text) for text in opened.rows.references()]
    scores = scores_of(system.task, texts, references, lowercase=system.codec.lowercases)
    return finite_or_none({name: round(value, DECIMALS) for name, value in scores.values.items()})


def _time(outcomes: list[Outcome], first: dict[str, Opened], setting: Setting, known: _Known) -> int:
    """Fill in the speeds; returns the number of sentences that are timed."""
    opened = first[outcomes[0].contestant.name]
    total = len(opened.rows)
    count = min(setting.sentences or total, total)
    chosen = np.array([place * total // count for place in range(count)])
    # All systems get the same sentences in the same batches, of similar length by the first system's tokens.
    order = chosen[np.argsort(-opened.rows.source_lengths(chosen), kind="stable")]
    key = _key(
        "rounds",
        [_identity(outcome.contestant.models[0], outcome.contestant) for outcome in outcomes],
        [first[outcome.contestant.name].rows.fingerprint for outcome in outcomes],
        [count, setting.dtype, setting.hardware, torch.__version__],
    )
    for batch_size in sorted(set(setting.batch_sizes)):
        batches = [order[begin : begin + batch_size] for begin in range(0, count, batch_size)]
        runs = {name: [partial(one.write, one.sources(batch)) for batch in batches] for name, one in first.items()}
        rounds = known.rounds(key, batch_size)
        if len(rounds) < setting.rounds:
            for parts in runs.values():  # the first batch of a process is slow
                parts[len(parts) // 2]()
        while len(rounds) < setting.rounds:
            known.add_round(key, batch_size, _round(runs, torch.device(setting.device)))
            rounds = known.rounds(key, batch_size)
            print(f"timed: batch {batch_size}, round {len(rounds)} of {setting.rounds}", file=sys.stderr, flush=True)
        for outcome in outcomes:
            taken = [each[outcome.contestant.name] for each in rounds]
            outcome.speeds[batch_size] = [(wall, cpu) for wall, cpu in taken]
    return count


def _round(runs: dict[str, list[Any]], device: torch.device) -> dict[str, list[float]]:
    """System -> wall-clock and CPU seconds of all its batches."""
    taken = {name: [0.0, 0.0] for name in runs}
    for number in range(len(next(iter(runs.values())))):
        for name, parts in runs.items():
            wall, cpu = stopwatch(parts[number], device)
            taken[name][0] += wall
            taken[name][1] += cpu
    return taken


def _identity(model: Path, contestant: Contestant) -> list[Any]:
    """What determines the outputs of a model."""
    return [fingerprint(best_model(model)), contestant.settings]


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


class _Known:
    """The JSON file with what is done: scores by model, and rounds by the systems that take turns.

    Raises:
        DataError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.scores: dict[str, dict[str, float | None]] = {}
        self._rounds: dict[str, dict[str, list[dict[str, list[float]]]]] = {}
        if path.is_file():
            try:
                values = json.loads(path.read_text(encoding="utf-8"))
                self.scores, self._rounds = dict(values["scores"]), dict(values["rounds"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}: cannot be read ({type(error).__name__}: {error}); remove it to measure anew"
                ) from None

    def rounds(self, key: str, batch_size: int) -> list[dict[str, list[float]]]:
        return self._rounds.get(key, {}).get(str(batch_size), [])

    def add_scores(self, key: str, values: dict[str, float | None]) -> None:
        self.scores[key] = values
        self._write()

    def add_round(self, key: str, batch_size: int, taken: dict[str, list[float]]) -> None:
        self._rounds.setdefault(key, {}).setdefault(str(batch_size), []).append(taken)
        self._write()

    def _write(self) -> None:
        values = {"scores": self.scores, "rounds": self._rounds}
        write_atomic(self._path, json.dumps(values, indent=1, allow_nan=False) + "\n")
