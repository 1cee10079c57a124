"""All ZeRO stages, numbers of ranks and accumulation steps give the same losses; half precision trains as well."""

from __future__ import annotations

import math

import pytest

from tests.jobs import Job

pytestmark = pytest.mark.slow

STEPS = 20
QUIET = [
    f"steps={STEPS}",
    "model.hidden_dropout=0",  # its random draws depend on the rank
    "model.attention_dropout=0",
    "intervals.eval_steps=100",
    "intervals.checkpoint_steps=100",
]
ZERO = {"stage3_param_persistence_threshold": 0}  # without it, ZeRO 3 does not partition such small parameters
OPTIMIZER = {"type": "AdamW", "params": {"lr": 3e-3, "weight_decay": 0.01}}


def losses(folder, shards, server, *, ranks: int, accumulation: int, stage: int, **ds_changes) -> list[float]:
    job = Job(
        folder,
        shards,
        train_batch_size=8,
        train_micro_batch_size_per_gpu=8 // ranks // accumulation,
        optimizer=OPTIMIZER,
        zero_optimization={"stage": stage, **(ZERO if stage == 3 else {})},
        **ds_changes,
    )
    job.train_forked(server, *QUIET, ranks=ranks, TEST_FP16_ON_CPU="1")
    rows = [row for row in job.metrics() if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return [row["train/loss"] for row in rows]


@pytest.fixture(scope="module")
def reference(small_shards, fork_server, tmp_path_factory):
    """The losses of one rank without accumulation and ZeRO."""
    return losses(tmp_path_factory.mktemp("reference"), small_shards, fork_server, ranks=1, accumulation=1, stage=0)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_fp32_losses_are_the_same(tmp_path, small_shards, fork_server, reference, stage, ranks, accumulation):
    ours = losses(tmp_path, small_shards, fork_server, ranks=ranks, accumulation=accumulation, stage=stage)
    assert ours == pytest.approx(reference, rel=1e-5)
    assert ours[-1] < 0.9 * ours[0]


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(
    "precision",
    [{"bf16": {"enabled": True}}, {"fp16": {"enabled": True, "initial_scale_power": 12}}],
    ids=["bf16", "fp16"],
)
def test_half_precision_trains(tmp_path, small_shards, fork_server, reference, precision, stage):
    ours = losses(tmp_path, small_shards, fork_server, ranks=2, accumulation=2, stage=stage, **precision)
    assert all(map(math.isfinite, ours))
    assert ours[-1] < 0.9 * ours[0]
    assert ours[0] == pytest.approx(reference[0], rel=0.01)
