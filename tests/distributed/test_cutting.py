"""Loader and objective settings on real ranks. The division of a step changes nothing; a lost file is reported."""

from __future__ import annotations

import os
import shutil

import pytest

from bnb_ds.export.from_run import export
from bnb_ds.modeling import BnbForConditionalGeneration
from tests.jobs import Job

pytestmark = pytest.mark.slow

NO_DROPOUT = ("model.hidden_dropout=0", "model.attention_dropout=0", "steps=4")
ALL_OBJECTIVES = (
    "data.sequence=pack",
    "objective.corruption={ae: 1, mlm: 1, plm: 1, mlm+plm: 2, clm: 1}",
    "objective.whole_word=true",
    "objective.encoder_mlm_weight=0.5",
)


def values(job: Job, tag: str) -> list[float]:
    return [value for _, value in job.scalars()[tag]]


@pytest.fixture(scope="module")
def reference(tmp_path_factory, small_shards, fork_server):
    """A run on two ranks with fixed micro batches, all objectives, packed samples and the auxiliary loss."""
    job = Job(tmp_path_factory.mktemp("reference"), small_shards, "reference")
    job.train_forked(fork_server, *NO_DROPOUT, *ALL_OBJECTIVES)
    return job


@pytest.mark.parametrize(("ranks", "stage", "budget"), [(2, 0, 40), (1, 1, 50), (2, 2, 24), (2, 3, 60), (2, 1, 1000)])
def test_micro_batches_by_tokens_train_as_micro_batches_by_count(
    tmp_path, small_shards, fork_server, reference, ranks, stage, budget
):
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0} if stage == 3 else {"stage": stage}
    job = Job(tmp_path, small_shards, zero_optimization=zero)
    settings = [*NO_DROPOUT, *ALL_OBJECTIVES, f"loader.micro_batch_tokens={budget}", "loader.workers=2"]
    text = job.train_forked(fork_server, *settings, ranks=ranks)
    assert f"micro batches of at most {budget:,} tokens on {ranks} ranks" in text
    for tag in ("train/loss", "train/grad_norm", "eval/loss"):
        assert values(job, tag) == pytest.approx(values(reference, tag), rel=2e-5), tag


def test_a_run_with_the_auxiliary_head_exports_the_model_itself(tmp_path, reference):
    export(reference.output, tmp_path / "exported")
    model = BnbForConditionalGeneration.from_pretrained(tmp_path / "exported")
    assert not any("encoder_mlm" in name for name in model.state_dict())
    assert any(name.startswith("encoder_mlm_head.") for name in reference.weights())


def test_a_run_goes_on_with_other_loader_settings(tmp_path, small_shards, fork_server, reference):
    job = Job(tmp_path, small_shards)
    job.train_forked(fork_server, *NO_DROPOUT, *ALL_OBJECTIVES, "--stop-at", "2")
    settings = [*NO_DROPOUT, *ALL_OBJECTIVES, "loader.micro_batch_tokens=40"]
    job.train_forked(fork_server, *settings, "--resume", "auto")
    assert values(job, "train/loss") == pytest.approx(values(reference, "train/loss"), rel=2e-5)


def test_a_shard_that_is_lost_while_training_ends_every_rank_with_its_name(tmp_path, small_shards, fork_server):
    shards = shutil.copytree(small_shards, tmp_path / "shards")
    job = Job(tmp_path, shards)
    launch = job.fork(fork_server, "steps=100000", "intervals.eval_steps=100000")
    launch.wait_for((job.output / "checkpoints" / "step_00000003").exists)
    for path in shards.glob("train-*.tokens.npy"):
        os.truncate(path, 128)
    assert launch.wait() == [2, 2], launch.text()
    lines = [line for line in launch.text().splitlines() if "pretrain.py: error" in line]
    assert lines, launch.text()
    assert ".tokens.npy: ends at byte" in lines[0]
    assert "restore it and start again" in lines[0]
    assert "Traceback" not in launch.text()
