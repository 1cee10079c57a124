"""SIGTERM at random moments, evaluations included, changes neither scores nor the best checkpoint nor weights."""

from __future__ import annotations

import random
import re
import signal
import time
from pathlib import Path

import pytest

from bnb_ds.checkpoint.store import best_checkpoint, selection_loss, step_of, whole_checkpoints
from bnb_ds.checkpoint.weights import read_weights
from tests.fork_server import ForkServer, Launch
from tests.jobs import DS_CONFIG, Job

pytestmark = pytest.mark.slow

#: with this rate the held-out loss rises and falls, so that the best checkpoint is not the last
OPTIMIZER = {"type": "AdamW", "params": {"lr": 1.0}}
BATCHES = 6


class Stops:
    """A run whose evaluations take `BATCHES` times ``batch_seconds``.

    Args:
        folder: for the runs.
        shards: the data.
        server: starts the ranks.
        steps: of the run.
        eval_steps: between evaluations.
        batch_seconds: that a batch of an evaluation takes.
        hang_seconds: what the watchdog takes for a hang.
    """

    def __init__(
        self,
        folder: Path,
        shards: Path,
        server: ForkServer,
        *,
        steps: int,
        eval_steps: int,
        batch_seconds: float,
        hang_seconds: float,
    ) -> None:
        self._folder, self._shards, self._server = folder, shards, server
        self._settings = [f"steps={steps}", f"intervals.eval_steps={eval_steps}", "intervals.checkpoint_steps=1000"]
        self._settings += ["schedule.decay=constant", f"intervals.eval_samples={BATCHES * 4}"]
        self._variables = {"SECONDS_PER_BATCH": str(batch_seconds), "HANG_SECONDS": str(hang_seconds)}
        self._eval_seconds = batch_seconds * BATCHES
        self._steps = steps

    def job(self, name: str) -> Job:
        """A job in a directory of its own."""
        return Job(self._folder, self._shards, name, **{**DS_CONFIG, "optimizer": OPTIMIZER})

    def launch(self, job: Job) -> Launch:
        """Start or continue it on two ranks."""
        log = job.recipe.with_name(f"{job.output.name}.{time.monotonic_ns()}.log")
        arguments = job.arguments(*self._settings, "--resume", "auto")
        program = "tests.distributed.slow_evaluations"
        return self._server.launch(arguments, log, program=program, **self._variables)

    def finish(self, job: Job) -> None:
        """Run it to its end."""
        launch = self.launch(job)
        assert launch.wait(3600) == [0, 0], launch.text()

    def stop_at_random(self, job: Job, number: int, seed: int) -> list[int]:
        """Ask one rank to end, ``number`` times; returns the steps at which it ended."""
        dice, ended = random.Random(seed), []
        for at in sorted(dice.sample(range(1, self._steps), number)):
            launch = self.launch(job)
            # One step later at least, so that every launch gets on; half of the moments are soon after a step.
            wanted = max(at, job.last_step() + 1)
            launch.wait_for(lambda wanted=wanted: job.last_step() >= wanted, 600)
            time.sleep(dice.choice((0.0, dice.uniform(0, 1.2 * self._eval_seconds))))
            launch.kill(dice.randrange(2), signal.SIGTERM)
            assert launch.wait(600) == [0, 0], launch.text()
            found = re.search(r"stopped      at step (\d+) \(SIGTERM on rank \d\); continue with", launch.text())
            if found is None:  # the request came after the last evaluation
                assert "done         step" in launch.text()
                break
            assert "done  " not in launch.text()
            ended.append(int(found[1]))
        return ended


def scores(job: Job) -> dict[int, tuple[float, float, int]]:
    rows = [row for row in job.metrics() if "eval/loss" in row]
    found = {row["step"]: (row["eval/loss"], row["eval/token_accuracy"], row["eval/loss_samples"]) for row in rows}
    assert len(found) == len(rows), "an evaluation was logged twice"
    return found


def weights(checkpoint: Path) -> dict[str, bytes]:
    return {name: weight.detach().numpy().tobytes() for name, weight in read_weights(checkpoint).items()}


def outcome(job: Job) -> dict[str, object]:
    """What a run ends with."""
    whole = whole_checkpoints(job.output / "checkpoints")
    best = best_checkpoint(whole)
    return {
        "best": (step_of(best), selection_loss(best), weights(best)),
        "last": (step_of(whole[-1]), selection_loss(whole[-1]), weights(whole[-1])),
        "scores": scores(job),
        "losses": {row["step"]: row["train/loss"] for row in job.metrics() if "train/loss" in row},
    }


def test_the_outcome_is_that_of_an_uninterrupted_run(tmp_path, small_shards, fork_server):
    stops = Stops(tmp_path, small_shards, fork_server, steps=24, eval_steps=4, batch_seconds=0.05, hang_seconds=1800)
    whole, stopped = stops.job("whole"), stops.job("stopped")
    stops.finish(whole)
    ended = stops.stop_at_random(stopped, 3, seed=1)
    assert len(ended) >= 2
    stops.finish(stopped)
    expected = outcome(whole)
    assert list(expected["scores"]) == [4, 8, 12, 16, 20, 24]
    assert expected["best"][0] < 24, "the best is the last, which would show little"
    assert outcome(stopped) == expected
