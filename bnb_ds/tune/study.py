"""The search: Optuna proposes settings (TPE), trials run side by side, and the median decides which end early.

``output/`` holds ``study.journal`` (all that Optuna knows, so that a repeated command continues), the runs in
``trials/``, a table of them in ``trials.md``, and at the end the best settings as ``best.yaml`` and ``best.json``.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnb_ds.checkpoint.run_lock import RunLock
from bnb_ds.common.files import write_atomic
from bnb_ds.common.markdown import markdown_table
from bnb_ds.common.shipped import find_ds_config
from bnb_ds.config.deepspeed import load_ds_config
from bnb_ds.config.loading import differences, load_recipe
from bnb_ds.config.sections import TrainingRecipe
from bnb_ds.errors import ConfigError, DataError, how_to_install
from bnb_ds.tune.space import Dimension, Settings, combinations
from bnb_ds.tune.trial_run import TrialRun, drop_weights, write_ds_config, write_recipe

BEST_RECIPE, BEST_DS, TABLE_FILE = "best.yaml", "best.json", "trials.md"
_JOURNAL, _STUDY = "study.journal", "search"
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Goal:
    """What a search is for.

    Attributes:
        module: the program that makes a run.
        tag: of the score in ``metrics.jsonl``.
        larger_is_better: the direction of the score.
        schema: of its recipe.
    """

    module: str
    tag: str
    larger_is_better: bool
    schema: type[TrainingRecipe]


@dataclass(frozen=True)
class Search:
    """A search to make or to continue.

    Attributes:
        settings: those of every trial.
        space: what varies.
        goal: what is wanted.
        output: directory.
        places: where trials run, one at a time at each.
        trials: how many; None: every combination of a space of lists, else 20.
        seed: of the proposals.
        say: prints a line.
    """

    settings: Settings
    space: Sequence[Dimension]
    goal: Goal
    output: Path
    places: Sequence[dict[str, str]]
    trials: int | None = None
    seed: int = 0
    say: Callable[[str], None] = field(default=lambda line: print(line, flush=True))


@dataclass(frozen=True)
class Best:
    """The best trial: its name, score, varied values, settings, and the files that hold them."""

    trial: str
    score: float
    values: dict[str, Any]
    settings: Settings
    recipe: Path
    ds_config: Path


def read_ds_values(path: str | Path) -> dict[str, Any]:
    """A DeepSpeed JSON as it stands in its file, but checked.

    Raises:
        ConfigError: as `load_ds_config`.
    """
    load_ds_config(path, 1)
    return json.loads(find_ds_config(path).read_text(encoding="utf-8"))


def search(job: Search) -> Best:
    """Make the trials that are missing, and write the best settings.

    Raises:
        ConfigError: Optuna is not installed, the settings differ from those that the search began with, or another
            process works there.
        DataError: no trial has a score.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError(f"bnb-ds tune needs optuna: {how_to_install('tune')}") from None
    _check(job)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with RunLock(job.output):
        return _Running(job, optuna).run()


def _check(job: Search) -> None:
    """Refuse settings that the program would refuse: those that do not vary, and each value of those that do.

    Raises:
        ConfigError: the message names the setting.
    """
    candidates = [("", job.settings)]
    for dimension in job.space:
        for value in dimension.ends:
            candidates.append((f"--space: {dimension.name} {value}: ", job.settings.changed({dimension: value})))
    with tempfile.TemporaryDirectory() as folder:
        recipe, ds_config = Path(folder, "recipe"), Path(folder, "deepspeed")
        for name, settings in candidates:
            write_recipe(recipe, {**settings.recipe, "output_dir": "trial"})
            write_ds_config(ds_config, settings.deepspeed)
            try:
                load_recipe(recipe, (), job.goal.schema)
                load_ds_config(ds_config, 1)  # a trial is the only rank of its job
            except ConfigError as error:
                raise ConfigError(name + str(error).replace(f"{folder}/", "")) from None


class _Running:
    """A search at work."""

    def __init__(self, job: Search, optuna: Any) -> None:
        self._job = job
        self._optuna = optuna
        self._states = optuna.trial.TrialState
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(job.output / _JOURNAL)))
        self._study = optuna.create_study(
            storage=storage,
            study_name=_STUDY,
            load_if_exists=True,
            direction="maximize" if job.goal.larger_is_better else "minimize",
            pruner=optuna.pruners.MedianPruner(),
        )
        before = len(self._study.trials)
        # A search that goes on with the seed that it began with would propose its first trials again.
        self._study.sampler = optuna.samplers.TPESampler(seed=job.seed + before, constant_liar=True)
        self._at_work: dict[int, tuple[Any, TrialRun, list[float]]] = {}

    def run(self) -> Best:
        self._refuse_other_settings()
        self._take_up_again()
        wanted = self._wanted()
        done = len(self._ended())
        self._job.say(f"tune: {done} of {wanted} trials are done; {len(self._job.places)} run at a time")
        try:
            while self._at_work or len(self._ended()) < wanted:
                while len(self._at_work) < len(self._job.places):
                    if len(self._ended()) + len(self._at_work) >= wanted:
                        break
                    self._start()
                for number in list(self._at_work):
                    self._look_at(number)
                time.sleep(_POLL_SECONDS)
        finally:
            for _, run, _ in self._at_work.values():
                run.ask_to_end()
            for _, run, _ in self._at_work.values():
                run.end()
        return self._write_best()

    def _refuse_other_settings(self) -> None:
        job = self._job
        ours = {
            "recipe": job.settings.recipe,
            "deepspeed": job.settings.deepspeed,
            "space": {dimension.name: list(map(str, vars(dimension).values())) for dimension in job.space},
            "score": job.goal.tag,
        }
        ours = json.loads(json.dumps(ours, default=str))
        theirs = self._study.user_attrs.get("settings")
        if theirs is None:
            self._study.set_user_attr("settings", ours)
        elif changes := list(differences(ours, theirs)):
            raise ConfigError(
                f"--output {job.output}: holds a search with other settings: {'; '.join(changes)}; restore them, or"
                " choose another --output"
            )

    def _take_up_again(self) -> None:
        """Trials that ran when the last call ended are tried again first, and continue from their checkpoints."""
        for trial in self._study.get_trials(states=[self._states.RUNNING]):
            self._study.tell(trial.number, state=self._states.FAIL)
            self._study.enqueue_trial(trial.params, user_attrs={"folder": self._folder(trial)})

    def _wanted(self) -> int:
        every = list(combinations(list(self._job.space))) if self._job.trials is None else []
        for params in every:
            self._study.enqueue_trial(params, skip_if_exists=True)
        return len(every) or self._job.trials or 20

    def _folder(self, trial: Any) -> str:
        return trial.user_attrs.get("folder", f"{trial.number:04d}")

    def _directory(self, trial: Any) -> Path:
        return self._job.output / "trials" / self._folder(trial)

    def _ended(self) -> list[Any]:
        """The trials that need not be made any more; the last one of each folder."""
        trials = self._study.get_trials(deepcopy=False)
        open_folders = {self._folder(trial) for trial in trials if not trial.state.is_finished()}
        last = {self._folder(trial): trial for trial in trials}
        return [trial for folder, trial in last.items() if folder not in open_folders]

    def _start(self) -> None:
        trial = self._study.ask()
        values = {dimension: dimension.suggest(trial) for dimension in self._job.space}
        busy = [run.place for _, run, _ in self._at_work.values()]
        places = list(self._job.places)
        for place in busy:
            places.remove(place)
        run = TrialRun(trial.number, self._directory(trial), self._job.goal.tag, places[0])
        run.start(self._job.goal.module, self._job.settings.changed(values))
        self._at_work[trial.number] = (trial, run, [])

    def _look_at(self, number: int) -> None:
        trial, run, scores = self._at_work[number]
        code = run.exit_code  # before the scores are read, so that none is missed
        for step, score in run.new_scores():
            trial.report(score, step)
            scores.append(score)
            if code is None and trial.should_prune():
                run.end()
                self._tell(number, f"ended early at step {step}, {self._job.goal.tag} {score:.4g}", "PRUNED")
                return
        if code is None:
            return
        finite = [score for score in scores if math.isfinite(score)]
        if code or not finite:
            self._tell(number, f"failed ({run.last_words})", "FAIL")
            return
        score = (max if self._job.goal.larger_is_better else min)(finite)
        self._tell(number, f"{self._job.goal.tag} {score:.4g}", "COMPLETE", score)

    def _tell(self, number: int, what: str, state: str, score: float | None = None) -> None:
        trial, run, _ = self._at_work.pop(number)
        before = self._best()
        self._study.tell(trial, score, state=self._states[state])
        best = self._best()
        is_best = best is not None and best.number == number
        # Only the best trial keeps its weights.
        if not is_best:
            drop_weights(run.directory)
        elif before is not None:
            drop_weights(self._directory(before))
        params = ", ".join(f"{name} {_shown(value)}" for name, value in _plain(trial.params).items())
        self._job.say(f"trial {self._folder(trial)}  {params}: {what}" + "  (the best so far)" * is_best)
        self._write_table()

    def _best(self) -> Any:
        done = self._study.get_trials(deepcopy=False, states=[self._states.COMPLETE])
        return self._study.best_trial if done else None

    def _write_table(self) -> None:
        names = [dimension.name for dimension in self._job.space]
        rows = []
        for trial in self._ended():
            value = "" if trial.value is None else f"{trial.value:.5g}"
            params = _plain(trial.params)
            rows.append(
                (
                    self._folder(trial),
                    trial.state.name.lower(),
                    value,
                    *(_shown(params[name]) for name in names if name in params),
                )
            )
        header = ("trial", "state", self._job.goal.tag, *names)
        write_atomic(self._job.output / TABLE_FILE, markdown_table(header, sorted(rows)) + "\n")

    def _write_best(self) -> Best:
        best = self._best()
        if best is None:
            failed = self._job.output / "trials"
            raise DataError(f"--output {self._job.output}: no trial has a score; their logs are in {failed}")
        params = _plain(best.params)
        settings = self._job.settings.changed({dimension: params[dimension.name] for dimension in self._job.space})
        recipe, ds_config = self._job.output / BEST_RECIPE, self._job.output / BEST_DS
        write_recipe(recipe, settings.recipe)
        write_ds_config(ds_config, settings.deepspeed)
        return Best(self._folder(best), best.value, params, settings, recipe, ds_config)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of Optuna as values: those of lists are kept as JSON."""
    return {name: json.loads(value) if isinstance(value, str) else value for name, value in params.items()}
