"""The training loop with a real engine and one rank in this process: all ZeRO stages and precisions of a CPU."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace

import deepspeed
import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch import nn

from bnb_ds.checkpoint import store
from bnb_ds.checkpoint.store import CheckpointWriter
from bnb_ds.checkpoint.weights import read_weights
from bnb_ds.config.deepspeed import load_ds_config
from bnb_ds.distributed import ranks
from bnb_ds.errors import ConfigError, DataError, NonFiniteLossError
from bnb_ds.train import engine
from bnb_ds.train import step as train_step
from bnb_ds.train.hardware import Peak
from bnb_ds.train.objectives import Reconstruction
from bnb_ds.train.parameters.groups import parameter_groups
from bnb_ds.train.spikes import SpikeDetector
from bnb_ds.train.tracking import read_metrics, read_scalars
from tests import launching

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_optimization": {"stage": 0}},
        {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}},
        {"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}},
        {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}},
        {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}},
        {"zero_optimization": {"stage": 1}, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
        {"zero_optimization": {"stage": 1}, "activation_checkpointing": {}},
    ],
    ids=lambda changes: "-".join([f"stage {changes['zero_optimization']['stage']}", *list(changes)[1:]]),
)
def test_the_loss_falls_and_the_weights_export_in_every_configuration(make_loop, tmp_path, changes):
    loop = make_loop(steps=8, **changes)
    assert loop.run(0, 0) == 8
    scalars = read_scalars(tmp_path / "runs")
    losses = [loss for _, loss in scalars["train/loss"]]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.9 * losses[0]
    norms = [norm for _, norm in scalars["train/grad_norm"]]
    assert all(norm > 0 for norm in norms)
    exported = read_weights(tmp_path / "checkpoints" / "step_00000008")
    with deepspeed.zero.GatheredParameters(list(loop.engine.module.parameters())):
        trained = {name: weight.detach().clone() for name, weight in loop.engine.module.named_parameters()}
    assert set(exported) == set(trained)
    for name, weight in trained.items():
        assert exported[name].dtype == torch.float32
        assert torch.equal(exported[name].to(weight.dtype), weight), name
    if "bf16" in changes:  # the export is the fp32 master copy, not its rounding
        assert any((weight != weight.bfloat16().float()).any() for weight in exported.values())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_infinite_gradient_stops_the_run_with_the_weights_unchanged(make_loop, tmp_path, stage):
    class FiniteLossWithInfiniteGradient(Reconstruction):
        def loss_sum(self, model, batch, device, step):
            loss_sum = super().loss_sum(model, batch, device, step)
            return loss_sum + (loss_sum * 0).sqrt()

    loop = make_loop(FiniteLossWithInfiniteGradient(), zero_optimization={"stage": stage})

    def weights():
        with deepspeed.zero.GatheredParameters(list(loop.engine.module.parameters()), enabled=stage == 3):
            return {name: weight.detach().clone() for name, weight in loop.engine.module.named_parameters()}

    before = weights()
    with pytest.raises(NonFiniteLossError, match="step 1: the gradient is not finite, but the loss is"):
        loop.run(0, 0)
    after = weights()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    record = json.loads((tmp_path / "nonfinite_step_00000001.json").read_text())
    assert sum(len(batch) for batch in record["sample_ids_by_rank"]["0"]) == 8


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_overflow_at_the_lowest_loss_scale_is_one_line(make_loop, tmp_path, stage, monkeypatch):
    class Overflows(Reconstruction):
        def loss_sum(self, model, batch, device, step):
            return super().loss_sum(model, batch, device, step) * (1e9 if step == 2 else 1)

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    fp16 = {"enabled": True, "initial_scale_power": 0, "hysteresis": 1}
    loop = make_loop(Overflows(), zero_optimization={"stage": stage}, fp16=fp16)
    with pytest.raises(
        NonFiniteLossError,
        match=r"step 2: the gradient overflows in fp16 even with the lowest loss scale, 1; .*step_00000002\.json"
        r" lists the samples of the step; the weights are unchanged; train in bf16 or fp32, or lower the learning",
    ):
        loop.run(0, 0)
    record = json.loads((tmp_path / "nonfinite_step_00000002.json").read_text())
    assert sum(len(batch) for batch in record["sample_ids_by_rank"]["0"]) == 8


def test_overflows_that_never_end_are_one_line(make_loop, monkeypatch):
    """A static loss scale does not fall."""
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    monkeypatch.setattr(train_step, "_MOST_OVERFLOWS", 3)
    loop = make_loop(steps=9, zero_optimization={"stage": 1}, fp16={"enabled": True, "loss_scale": 2**40})
    with pytest.raises(
        NonFiniteLossError, match=r"step 3: the gradient has overflowed in fp16 at 3 steps in a row; .*\.json lists"
    ):
        loop.run(0, 0)


def test_matrices_decay_and_vectors_do_not():
    decayed, exempt = parameter_groups(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), 0.1)
    assert (decayed["weight_decay"], [p.ndim for p in decayed["params"]]) == (0.1, [2])
    assert (exempt["weight_decay"], [p.ndim for p in exempt["params"]]) == (0.0, [1, 1, 1])


def test_going_back_abandons_what_came_after(make_loop, tmp_path):
    """A run that went back to an old checkpoint never resumes from an abandoned one, and keeps its newest one."""
    loop = make_loop(steps=1, zero_optimization={"stage": 1})
    loop.run(0, 0)
    directory = tmp_path / "checkpoints"
    for abandoned in (5, 6):
        shutil.copytree(directory / "step_00000001", directory / f"step_{abandoned:08d}")
    (directory / "step_00000002.partial").mkdir()
    (directory / ".latest.123.partial").write_text("step_000")
    CheckpointWriter(loop.engine, directory, keep=1).save(3, {"samples_consumed": 24})
    kept = [path.name for path in store.whole_checkpoints(directory)]
    assert kept == ["step_00000001", "step_00000003"]  # the best so far, and the newest
    assert store.newest_intact(directory) == (directory / "step_00000003", [])
    assert not list(directory.glob("*.partial"))


def test_a_disk_that_refuses_is_a_users_error(make_loop, tmp_path):
    loop = make_loop(steps=1, zero_optimization={"stage": 1})
    (tmp_path / "checkpoints").write_text("a file stands where the directory should be")
    with pytest.raises(DataError, match=r"checkpoints: cannot write: .*; check space and permissions"):
        loop.run(0, 0)


def test_several_tasks_without_ranks_are_refused(monkeypatch):
    for name in launching.LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(ConfigError, match=r"SLURM_NTASKS is 4 but RANK is not set: .*; start with deepspeed"):
        ranks.init()


def test_offloaded_lamb_is_refused(make_loop):
    zero = {"stage": 0, "offload_optimizer": {"device": "cpu"}}
    with pytest.raises(ConfigError, match="Lamb cannot be offloaded; use AdamW"):
        make_loop(zero_optimization=zero, optimizer={"type": "Lamb", "params": {"lr": 1e-3}})


def test_a_state_is_offloaded_without_deepspeeds_cpu_adam(make_loop, monkeypatch, tmp_path):
    """Where it cannot be compiled, torch's AdamW updates the offloaded state, with the same numbers."""
    plain = make_loop(steps=2, zero_optimization={"stage": 1})
    plain.run(0, 0)
    shutil.rmtree(tmp_path / "checkpoints")
    monkeypatch.setattr(engine, "fault_of_cpu_adam", lambda: "RuntimeError: no C++ compiler")
    loop = make_loop(steps=2, zero_optimization={"stage": 1, "offload_optimizer": {"device": "cpu"}})
    loop.run(0, 0)
    assert type(loop.engine.basic_optimizer) is torch.optim.AdamW
    for one, other in zip(loop.engine.module.parameters(), plain.engine.module.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    ds_config = load_ds_config(tmp_path / "ds.json", 1)
    assert engine._offloaded_optimizer(ds_config, {})[1] == (
        "torch AdamW, fused (offloaded; DeepSpeed CPUAdam does not work here: RuntimeError: no C++ compiler)"
    )


def test_settings_that_only_deepspeed_refuses(make_loop, tmp_path):
    """DeepSpeed's CPU accelerator has fp16 only where the processor has."""
    if get_accelerator().is_fp16_supported():
        pytest.skip("DeepSpeed takes fp16 on this processor")
    with pytest.raises(ConfigError, match=r"ds\.json: DeepSpeed rejects these settings; change them: .*fp16"):
        make_loop(zero_optimization={"stage": 1}, fp16={"enabled": True})


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_spike_is_not_taken_and_counted(make_loop, tmp_path, stage):
    """The loss of the third step is a thousand times too high. Weights and optimizer moments do not change."""

    class Spike(Reconstruction):
        calls = 0

        def loss_sum(self, model, batch, device, step):
            self.calls += 1
            return super().loss_sum(model, batch, device, step) * (1000 if self.calls in (5, 6) else 1)

    spikes = SpikeDetector(factor=3, window_steps=2)
    loop = make_loop(Spike(), steps=4, spikes=spikes, zero_optimization={"stage": stage})
    weights = []
    take = loop.train_step.take

    def watched(*arguments, **options):
        result = take(*arguments, **options)
        with deepspeed.zero.GatheredParameters([loop.engine.module.lm_head.bias], enabled=stage == 3):
            weights.append(loop.engine.module.lm_head.bias.detach().clone())
        return result

    loop.train_step.take = watched
    loop.run(0, 0)
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[2], weights[3])
    assert all(weight.isfinite().all() for weight in weights)
    assert read_scalars(tmp_path / "runs")["train/skipped_spikes"] == [(3, 1), (4, 1)]
    assert [row["train/skipped_spikes"] for row in read_metrics(tmp_path / "metrics.jsonl")[:4]] == [0, 0, 1, 1]
    state = store.read_state(tmp_path / "checkpoints" / "step_00000004")
    assert state["spikes"]["skipped"] == 1
    assert len(state["spikes"]["recent"]) == 2


def test_a_step_without_a_target_that_fits_has_no_loss(make_loop, tmp_path):
    """It is logged as such, and its 0 does not make spikes of the steps after it."""

    class NothingFits(Reconstruction):
        def loss_sum(self, model, batch, device, step):
            return super().loss_sum(model, batch, device, step) * (batch.num_targets > 0)

    loop = make_loop(NothingFits(), steps=4, spikes=SpikeDetector(factor=3, window_steps=1))
    take = loop.train_step.take

    def with_misfits(step, batches, **options):
        if step == 2:
            batches = [replace(b, num_targets=0, loss_count=0, num_infeasible=b.num_samples) for b in batches]
        return take(step, batches, **options)

    loop.train_step.take = with_misfits
    loop.run(0, 0)
    rows = {row["step"]: row for row in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in row}
    assert rows[2]["train/loss"] is None
    assert all(rows[step]["train/loss"] > 1 for step in (1, 3, 4))
    assert rows[4]["train/skipped_spikes"] == 0


def test_with_a_known_peak_the_share_of_it_is_shown(make_loop, capsys):
    loop = make_loop(steps=2)
    loop.peak = Peak(1e12, "a test")
    loop.run(0, 0)
    assert re.search(r"tokens/s  MFU \d+\.\d%  ETA", capsys.readouterr().out)
    rows = read_metrics(loop.writer._directory.parent / "metrics.jsonl")
    assert all(0 < row["usage/mfu"] < 1 for row in rows if "train/loss" in row)
