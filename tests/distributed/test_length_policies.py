"""Pre-train with other losses and decoder lengths on two ranks, then export and generate."""

from __future__ import annotations

import pytest

from bnb_ds.cli import main
from tests.jobs import Job

pytestmark = pytest.mark.slow

WAYS = {
    "predicted lengths": ["model.decoder_length=predicted", "model.kl_weight=0.1", "objective.corruption=clm"],
    "the paper's loss, shared halves": [
        "model.loss_reduction=sample",
        "model.kl_weight=0.1",
        "model.tie_encoder_decoder=true",
    ],
}


@pytest.mark.parametrize("overrides", WAYS.values(), ids=WAYS)
def test_it_trains_exports_and_generates(tmp_path, small_shards, fork_server, overrides):
    job = Job(tmp_path, small_shards, zero_optimization={"stage": 2})
    job.train_forked(fork_server, *overrides, "steps=40", "intervals.log_steps=10", "intervals.eval_steps=40")
    losses = [loss for _, loss in job.scalars()["train/loss"]]
    assert losses[-1] < losses[0]
    assert main(["export", str(job.output), str(tmp_path / "model")]) == 0
    (tmp_path / "in.txt").write_text("one line\nand another\n")
    lines = ["--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.txt")]
    assert main(["generate", str(tmp_path / "model"), *lines]) == 0
    assert (tmp_path / "out.txt").read_text().count("\n") == 2
