"""`--resume auto` with another number of ranks or another ZeRO stage, if DeepSpeed can convert the checkpoint."""

from __future__ import annotations

import json

import pytest

from tests.jobs import Job

pytestmark = pytest.mark.slow

#: no dropout, because its random draws depend on the rank
QUIET = ["model.hidden_dropout=0", "model.attention_dropout=0", "intervals.eval_steps=100", "intervals.log_steps=1"]


def make_job(folder, shards, stage: int) -> Job:
    zero = {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})}
    return Job(folder, shards, zero_optimization=zero)


def steps(job: Job) -> list[dict]:
    return [row for row in job.metrics() if "train/loss" in row]


def curve(job: Job) -> list[tuple[int, float, int]]:
    return [(row["step"], row["train/loss"], row["sample_fingerprint"]) for row in steps(job)]


@pytest.fixture(scope="module")
def uninterrupted(small_shards, fork_server, tmp_path_factory):
    """Losses and samples of an uninterrupted run on two ranks. They are the same at every stage."""
    job = make_job(tmp_path_factory.mktemp("uninterrupted"), small_shards, 1)
    job.train_forked(fork_server, *QUIET)
    return curve(job)


def assert_continues(job: Job, uninterrupted) -> None:
    ours = curve(job)
    assert [(step, samples) for step, _, samples in ours] == [(step, samples) for step, _, samples in uninterrupted]
    assert [loss for _, loss, _ in ours] == pytest.approx([loss for _, loss, _ in uninterrupted], abs=1e-3)
    assert not list(job.output.glob("checkpoints/*universal*"))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_then_one_then_two(tmp_path, small_shards, fork_server, uninterrupted, stage):
    job = make_job(tmp_path, small_shards, stage)
    for ranks, stop in ((2, 3), (1, 5), (2, 8)):
        text = job.train_forked(fork_server, *QUIET, "--resume", "auto", "--stop-at", str(stop), ranks=ranks)
    assert (f"converted from 1 ranks at ZeRO stage {stage} to 2 at {stage}" in text) == (stage > 0)
    assert_continues(job, uninterrupted)


@pytest.mark.parametrize(
    ("ranks", "micro_batch"), [(1, 2), (2, 4)], ids=["other ranks", "other micro batches, same ranks"]
)
def test_dropout_has_other_draws_on_other_ranks_and_the_samples_are_the_same(
    tmp_path, small_shards, fork_server, whole_run, ranks, micro_batch
):
    """Dropout is a function of seed, step, micro step and rank. Where both are the same, resumes are exact."""
    job = Job(tmp_path, small_shards, train_micro_batch_size_per_gpu=micro_batch)
    job.train_forked(fork_server, "--stop-at", "2", ranks=ranks)
    ours, theirs = curve(job), curve(whole_run)[:2]
    assert [(step, samples) for step, _, samples in ours] == [(step, samples) for step, _, samples in theirs]
    # The first loss is that of the same weights and samples; only the masks differ.
    assert ours[0][1] == pytest.approx(theirs[0][1], rel=0.05)
    assert ours[0][1] != pytest.approx(theirs[0][1], rel=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "ranks"), [(1, 2, 1), (2, 1, 2)], ids=["1 to 2, one rank", "2 to 1, same ranks"]
)
def test_another_stage(tmp_path, small_shards, fork_server, uninterrupted, old, new, ranks):
    make_job(tmp_path, small_shards, old).train_forked(fork_server, *QUIET, "--stop-at", "4")
    job = make_job(tmp_path, small_shards, new)
    job.train_forked(fork_server, *QUIET, "--resume", "auto", ranks=ranks)
    assert_continues(job, uninterrupted)


def test_what_cannot_be_converted_is_refused_and_the_weights_go_on(tmp_path, small_shards, fork_server, uninterrupted):
    make_job(tmp_path, small_shards, 3).train_forked(fork_server, *QUIET, "--stop-at", "4")
    job = make_job(tmp_path, small_shards, 1)
    refused = job.fork(fork_server, *QUIET, "--resume", "auto")
    assert refused.wait() == [2, 2]
    errors = [line for line in refused.text().splitlines() if "error" in line]
    assert len(errors) == 1, errors
    assert "written at ZeRO stage 3, but this launch has stage 1" in errors[0]
    assert "set zero_optimization.stage to 3, or add --resume-weights-only" in errors[0]
    assert "Traceback" not in refused.text()

    # A fresh optimizer may have other settings. The run keeps them from then on.
    changed = json.loads(job.ds_config.read_text())
    changed["optimizer"]["params"]["weight_decay"] = 0.02
    job.ds_config.write_text(json.dumps(changed))
    text = job.train_forked(fork_server, *QUIET, "--resume", "auto", "--resume-weights-only", "--stop-at", "6")
    assert "with a fresh optimizer" in text
    job.train_forked(fork_server, *QUIET, "--resume", "auto")
    ours = curve(job)
    assert [(step, samples) for step, _, samples in ours] == [(step, samples) for step, _, samples in uninterrupted]
    # The weights of step 4 are those of the other run. After that, the fresh optimizer leads to other weights.
    assert ours[4][1] == pytest.approx(uninterrupted[4][1], abs=1e-4)
    rates = [row["train/lr"] for row in steps(job)]
    assert rates == sorted(rates, reverse=True), "the schedule begins anew"


def test_a_checkpoint_that_the_converter_cannot_read(tmp_path, small_shards, fork_server):
    job = make_job(tmp_path, small_shards, 1)
    job.train_forked(fork_server, *QUIET, "--stop-at", "1")
    from bnb_ds.checkpoint.resume import convert
    from bnb_ds.checkpoint.store import whole_checkpoints
    from bnb_ds.errors import CheckpointError

    (found,) = whole_checkpoints(job.output / "checkpoints")
    next(found.glob("*_optim_states.pt")).unlink()
    with pytest.raises(
        CheckpointError, match=r"DeepSpeed cannot convert it .*; resume with 2 ranks, or add --resume-w"
    ):
        convert(found)
    assert [path.name for path in found.parent.iterdir() if "universal" in path.name] == []
