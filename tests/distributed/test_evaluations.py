"""Evaluations in the training loop: errors, requests to stop, and the selection of the best checkpoint."""

from __future__ import annotations

import json
import math

import pytest

from bnb_ds.checkpoint import store
from bnb_ds.train.early_stopping import EarlyStopping
from bnb_ds.train.loop import Intervals, TrainLoop
from bnb_ds.train.phases import Phases

pytestmark = pytest.mark.slow


def scored(loop: TrainLoop, losses: list[float]) -> list[int]:
    """Replace the loop's evaluation by one that returns these losses in turn; returns the list of evaluated steps."""
    steps: list[int] = []

    def evaluate(step, check_in):
        check_in()
        steps.append(step)
        return {"eval/loss": losses[len(steps) - 1]}

    loop.evaluate = evaluate
    return steps


def states(tmp_path) -> dict[int, dict]:
    return {store.step_of(path): store.read_state(path) for path in store.whole_checkpoints(tmp_path / "checkpoints")}


def test_an_evaluation_that_fails_costs_no_step(make_loop, tmp_path):
    loop = make_loop(steps=4)
    loop.intervals = Intervals(log_steps=1, eval_steps=2, checkpoint_steps=100)

    def evaluate(step, check_in):
        raise RuntimeError("the metric broke")

    loop.evaluate = evaluate
    with pytest.raises(RuntimeError, match="the metric broke"):
        loop.run(0, 0)
    (state,) = states(tmp_path).values()
    assert (state["step"], state["samples_consumed"], state["evaluation_due"]) == (2, 16, True)
    assert state["selection_loss"] is None


def test_what_is_due_is_made_up_before_the_next_step(make_loop, tmp_path):
    loop = make_loop(steps=4)
    loop.intervals = Intervals(log_steps=1, eval_steps=2, checkpoint_steps=100)
    evaluated = scored(loop, [3.0, 2.0])
    loop.evaluate, evaluate = (lambda step, check_in: 1 / 0), loop.evaluate
    with pytest.raises(ZeroDivisionError):
        loop.run(0, 0)
    loop.evaluate = evaluate
    assert loop.run(2, 16, evaluation_due=True) == 4
    assert loop.finished
    assert evaluated == [2, 4]
    state = states(tmp_path)[4]
    assert (state["selection_loss"], state["evaluation_due"]) == (2.0, False)


@pytest.mark.parametrize("stop_at", [2, 4], ids=["in the middle", "at the last step"])
def test_a_request_to_end_is_heard_between_the_batches_of_an_evaluation(make_loop, tmp_path, stop_at, capsys):
    loop = make_loop(steps=4)
    loop.intervals = Intervals(log_steps=1, eval_steps=2, checkpoint_steps=100)
    asked, batches = [], []
    loop.stop_reason = lambda: "SIGTERM" if asked else None

    def evaluate(step, check_in):
        for number in range(1000):
            check_in()
            batches.append(number)
            if step == stop_at and number == 3:
                asked.append(True)
            if step < stop_at and number == 3:
                break
        return {"eval/loss": 1.0}

    loop.evaluate = evaluate
    assert loop.run(0, 0) == stop_at
    assert batches[-1] == 3, "no batch after the request"
    assert not loop.finished, "its evaluation is due"
    assert states(tmp_path)[stop_at]["evaluation_due"] is True
    assert f"stopped      at step {stop_at} (SIGTERM on rank 0); continue with --resume auto" in capsys.readouterr().out


def test_a_request_during_a_step_leaves_the_evaluation_due(make_loop, tmp_path):
    loop = make_loop(steps=4)
    loop.intervals = Intervals(log_steps=1, eval_steps=2, checkpoint_steps=100)
    evaluated = scored(loop, [1.0])
    reasons = iter([None, "SIGTERM"])
    loop.stop_reason = lambda: next(reasons, "SIGTERM")
    assert loop.run(0, 0) == 2
    assert evaluated == []
    assert states(tmp_path)[2]["evaluation_due"] is True


def test_the_best_evaluation_has_its_checkpoint(make_loop, tmp_path):
    """The best evaluation lies between two checkpoints that are due. Its checkpoint is on disk as well."""
    loop = make_loop(steps=4)
    loop.intervals = Intervals(log_steps=1, eval_steps=1, checkpoint_steps=100)
    scored(loop, [2.22, 6.86, 6.54, 2.86])
    loop.run(0, 0)
    kept = states(tmp_path)
    assert {step: state["selection_loss"] for step, state in kept.items()} == {1: 2.22, 4: 2.86}
    assert store.step_of(store.best_checkpoint(store.whole_checkpoints(tmp_path / "checkpoints"))) == 1


def test_a_score_that_is_no_number_never_wins(make_loop, tmp_path):
    loop = make_loop(steps=3)
    loop.intervals = Intervals(log_steps=1, eval_steps=1, checkpoint_steps=100)
    loop.early_stopping = EarlyStopping(patience=5)
    scored(loop, [3.0, math.nan, -math.inf])
    loop.run(0, 0)
    assert store.step_of(store.best_checkpoint(store.whole_checkpoints(tmp_path / "checkpoints"))) == 1
    assert 1 in states(tmp_path), "pruned"
    assert loop.early_stopping.state() == {"best": 3.0, "since_best": 2}
    json.loads((tmp_path / "checkpoints" / "step_00000001" / "checkpoint.json").read_text())


def test_early_stopping_knows_the_evaluation_of_its_checkpoint(make_loop, tmp_path):
    loop = make_loop(steps=9)
    loop.intervals = Intervals(log_steps=1, eval_steps=1, checkpoint_steps=100)
    loop.early_stopping = EarlyStopping(patience=2)
    evaluated = scored(loop, [1.0, 2.0, 3.0])
    assert loop.run(0, 0) == 3
    assert loop.finished
    assert evaluated == [1, 2, 3]
    assert states(tmp_path)[3]["early_stopping"] == {"best": 1.0, "since_best": 2}


def test_every_batch_of_an_evaluation_is_progress_with_its_step(make_loop):
    loop = make_loop(steps=2)
    marks: list[tuple[str, int | None]] = []
    loop.phases = Phases(loop.phases.device, lambda name, step: marks.append((name, step)))

    def evaluate(step, check_in):
        for _ in range(5):
            check_in()
        return {"eval/loss": 1.0}

    loop.evaluate = evaluate
    loop.run(0, 0)
    assert marks.count(("evaluation", 2)) == 1 + 5
    assert ("data", 1) in marks
    assert ("checkpoint", 2) in marks
