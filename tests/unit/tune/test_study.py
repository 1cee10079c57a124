"""A search with Optuna itself; only the trials are short, because a stand-in trains."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from bnb_ds.config.sections import PretrainRecipe
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.tune.space import Dimension, Settings
from bnb_ds.tune.study import Goal, Search, search
from tests import launching

pytest.importorskip("optuna", reason='needs optuna (`pip install ".[tune]"` in the checkout)')

RECIPE = {"output_dir": "mine", "steps": 4, "data": {"shards": "s"}, "schedule": {"warmup_ratio": 0.0}}
DS_CONFIG = {"train_batch_size": 4, "optimizer": {"type": "AdamW", "params": {"lr": 0.5}}}
GOAL = Goal("tests.unit.tune.stand_in", "eval/loss", False, PretrainRecipe)
RATE = Dimension("deepspeed", "optimizer.params.lr", (), 1e-6, 1e-1, True)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    """The trials import the stand-in."""
    monkeypatch.chdir(launching.REPOSITORY)


def make(output: Path, *space: Dimension, **changes) -> tuple[Search, list[str]]:
    lines: list[str] = []
    options = {"settings": Settings(RECIPE, DS_CONFIG), "goal": GOAL, "output": output, "places": [{}, {}]}
    return Search(**{**options, "space": space, "say": lines.append, **changes}), lines


def trials(output: Path) -> dict[str, list[str]]:
    """Trial -> the other cells of its row in `trials.md`."""
    rows = [line.strip("| ").split(" | ") for line in (output / "trials.md").read_text().splitlines()[2:]]
    return {name: cells for name, *cells in rows}


@pytest.mark.slow
def test_the_best_settings_are_found_and_written(tmp_path):
    job, lines = make(tmp_path / "o", RATE, Dimension("recipe", "schedule.warmup_ratio", (0.0, 0.5)), trials=14)
    best = search(job)
    rows = trials(job.output)
    losses = {name: float(loss) for name, (state, loss, *_) in rows.items() if state == "complete"}
    assert len(rows) == 14
    assert best.score == pytest.approx(min(losses.values()), rel=1e-4)
    assert {"complete"} <= {state for state, *_ in rows.values()} <= {"complete", "pruned"}
    assert lines[0] == "tune: 0 of 14 trials are done; 2 run at a time"
    assert sum(line.endswith("(the best so far)") for line in lines) >= 1
    written = yaml.safe_load(best.recipe.read_text())
    assert written == {**RECIPE, "schedule": {"warmup_ratio": best.values["recipe.schedule.warmup_ratio"]}}
    rate = json.loads(best.ds_config.read_text())["optimizer"]["params"]["lr"]
    assert rate == best.values["deepspeed.optimizer.params.lr"] != 0.5
    kept = [path.parent.name for path in (job.output / "trials").glob("*/checkpoints")]
    assert kept == [best.trial], "only the best trial keeps its weights"


@pytest.mark.slow
def test_a_trial_behind_the_median_ends_early(tmp_path):
    """Five trials are made to the end; the sixth holds, and is far behind."""
    good, bad = [1e-3 * factor for factor in (1.0, 1.1, 1.2, 1.3, 1.4)], 1e-6
    output = tmp_path / "o"

    def say(line: str) -> None:
        lines.append(line)
        if sum(": eval/loss" in one for one in lines) == len(good):
            (output / "hold").touch()

    lines: list[str] = []
    space = Dimension("deepspeed", "optimizer.params.lr", (*good, bad))
    job, _ = make(output, space, say=say, places=[{}])
    best = search(job)
    assert best.values == {"deepspeed.optimizer.params.lr": 1e-3}
    assert [state for state, *_ in trials(output).values()] == ["complete"] * 5 + ["pruned"]
    assert lines[-1].startswith("trial 0005  deepspeed.optimizer.params.lr 1e-06: ended early at step 1, eval/loss 4")


@pytest.mark.slow
def test_an_interrupted_search_continues(tmp_path):
    output = tmp_path / "o"

    def interrupt(line: str) -> None:
        if line.startswith("trial 0001"):
            raise KeyboardInterrupt

    job, _ = make(output, RATE, trials=5, say=interrupt, places=[{}])
    with pytest.raises(KeyboardInterrupt):
        search(job)
    (output / "hold").touch()  # the next trial is interrupted while it runs
    threads, lines = [], []

    def interrupt_later(line: str) -> None:
        lines.append(line)
        raise_when_started(output / "trials" / "0002" / "metrics.jsonl", threads)

    with pytest.raises(KeyboardInterrupt):
        search(make(output, RATE, trials=5, say=interrupt_later, places=[{}])[0])
    assert lines[0] == "tune: 2 of 5 trials are done; 1 run at a time"
    (output / "hold").unlink()
    job, lines = make(output, RATE, trials=5, places=[{}])
    search(job)
    rows = trials(output)
    assert list(rows) == ["0000", "0001", "0002", "0004", "0005"]  # 0003 was the second try of 0002
    assert (output / "trials" / "0002" / "starts").read_text().count("started") == 2
    rates = [cells[-1] for cells in rows.values()]
    assert len(set(rates)) == 5, "a search that goes on proposes something new"
    again = search(make(output, RATE, trials=5)[0])
    assert again.score == pytest.approx(min(float(loss) for _, loss, _ in rows.values() if loss), rel=1e-4)


def raise_when_started(path: Path, threads: list) -> None:
    """Have the main thread get a Ctrl-C as soon as a file is there."""
    import _thread
    import threading
    import time

    def wait() -> None:
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        _thread.interrupt_main()

    threads.append(threading.Thread(target=wait, daemon=True))
    threads[-1].start()


def test_lists_are_tried_in_all_combinations_and_failures_are_told(tmp_path):
    rates = Dimension("deepspeed", "optimizer.params.lr", (1e-3, 5.0))
    job, lines = make(tmp_path / "o", rates, Dimension("recipe", "schedule.warmup_ratio", (0.0, 0.5)))
    best = search(job)
    assert best.values == {"deepspeed.optimizer.params.lr": 1e-3, "recipe.schedule.warmup_ratio": 0.0}
    assert best.score == 0.25
    assert sorted(state for state, *_ in trials(job.output).values()) == ["complete", "complete", "fail", "fail"]
    assert sum(line.endswith("failed (stand-in: error: the loss is nan)") for line in lines) == 2


def test_no_trial_has_a_score(tmp_path):
    job, _ = make(tmp_path / "o", Dimension("deepspeed", "optimizer.params.lr", (5.0,)))
    with pytest.raises(DataError, match=r"no trial has a score; their logs are in .*trials"):
        search(job)


def test_what_a_search_refuses(tmp_path, monkeypatch):
    job, _ = make(tmp_path / "o", Dimension("recipe", "schedule.warmup_ratio", (0.0, 2.0)))
    with pytest.raises(
        ConfigError, match=r"^--space: recipe.schedule.warmup_ratio 2.0: recipe: schedule.warmup_ratio: "
    ):
        search(job)
    job, _ = make(tmp_path / "o", Dimension("recipe", "schedule.warmup", (0.0,)))
    with pytest.raises(ConfigError, match=r"unknown key 'schedule.warmup': did you mean 'warmup_ratio'"):
        search(job)
    job, _ = make(tmp_path / "o", Dimension("deepspeed", "optimiser.lr", (0.0,)))
    with pytest.raises(ConfigError, match=r"^--space: deepspeed.optimiser.lr 0.0: deepspeed: unknown key 'optimiser'"):
        search(job)
    assert not (tmp_path / "o").exists()
    search(make(tmp_path / "o", Dimension("recipe", "schedule.warmup_ratio", (0.0,)))[0])
    with pytest.raises(
        ConfigError, match=r"holds a search with other settings: space.recipe.schedule.warmup_ratio: .*choose another"
    ):
        search(make(tmp_path / "o", Dimension("recipe", "schedule.warmup_ratio", (0.1,)))[0])
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r'bnb-ds tune needs optuna: pip install "\.\[tune\]" in the checkout'):
        search(job)
