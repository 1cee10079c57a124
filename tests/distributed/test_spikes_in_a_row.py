"""Many loss spikes in a row: the run goes back to an older checkpoint, and ends if that does not help."""

from __future__ import annotations

import pytest
import torch

from bnb_ds.checkpoint import store
from bnb_ds.errors import LossSpikeError, NonFiniteLossError
from bnb_ds.train.loop import Intervals
from bnb_ds.train.objectives import Reconstruction
from bnb_ds.train.spikes import SpikeDetector
from bnb_ds.train.tracking import read_metrics

pytestmark = pytest.mark.slow


class Spoiled(Reconstruction):
    """Multiplies the loss by 1000 if ``is_spoiled`` is true for the number of the call, from 1."""

    def __init__(self, is_spoiled):
        super().__init__()
        self.is_spoiled = is_spoiled
        self.seen = []

    def loss_sum(self, model, batch, device, step):
        self.seen.append(batch.sample_ids.tolist())
        return super().loss_sum(model, batch, device, step) * (1000 if self.is_spoiled(len(self.seen)) else 1)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_the_run_goes_back_and_passes_over_the_samples(make_loop, tmp_path, stage, capsys):
    # Two micro batches a step. Steps 5, 6 and 7 are spikes; the newest checkpoint before them is that of step 4.
    objective = Spoiled(lambda call: 9 <= call <= 14)
    spikes = SpikeDetector(factor=3, window_steps=2, max_in_row=3)
    loop = make_loop(objective, steps=8, spikes=spikes, zero_optimization={"stage": stage})
    loop.writer._keep = 2
    loop.intervals = Intervals(log_steps=1, eval_steps=100, checkpoint_steps=2)
    assert loop.run(0, 0) == 8
    shown = capsys.readouterr().out
    assert "too many in a row at step 7; the run goes back to" in shown
    assert "step_00000004 and skips the samples read since then (return 1 of 3)" in shown
    state = store.read_state(tmp_path / "checkpoints" / "step_00000008")
    assert state["samples_consumed"] == 8 * (8 + 3), "the samples of the three spikes are passed over"
    assert (state["spikes"]["skipped"], state["spikes"]["returned_to"], state["spikes"]["in_row"]) == (3, [4], 0)
    assert objective.seen[14:16] not in (objective.seen[8:10], objective.seen[10:12], objective.seen[12:14])
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[-1]["train/spike_returns"] == 1


def test_a_second_return_goes_back_further_and_then_the_run_ends(make_loop, tmp_path):
    spikes = SpikeDetector(factor=3, window_steps=2, max_in_row=2, max_returns=2)
    loop = make_loop(Spoiled(lambda call: call > 8), steps=20, spikes=spikes)
    loop.writer._keep = 4
    loop.intervals = Intervals(log_steps=1, eval_steps=100, checkpoint_steps=1)
    expected = "step 5: the last 2 steps are loss spikes, and the run has gone back 2 times; lower the learning rate"
    with pytest.raises(LossSpikeError, match=expected):
        loop.run(0, 0)
    assert spikes.returned_to == [4, 3]


def test_with_no_older_checkpoint_the_run_ends(make_loop):
    spikes = SpikeDetector(factor=3, window_steps=2, max_in_row=2)
    loop = make_loop(Spoiled(lambda call: call > 4), steps=20, spikes=spikes)
    loop.intervals = Intervals(log_steps=1, eval_steps=100, checkpoint_steps=100)
    with pytest.raises(
        LossSpikeError, match="step 4: the last 2 steps are loss spikes, and the run has gone back 0 times"
    ):
        loop.run(0, 0)


@pytest.mark.parametrize("stage", [0, 3])
def test_spoiled_weights_are_never_the_newest_checkpoint(make_loop, tmp_path, stage):
    loop = make_loop(steps=1, zero_optimization={"stage": stage, "stage3_param_persistence_threshold": 0})
    loop.run(0, 0)
    parameter = loop.engine.module.lm_head.bias
    with torch.no_grad():
        getattr(parameter, "ds_tensor", parameter).view(-1)[0] = torch.nan
    expected = r"step 2: the weights are not finite \(the first is lm_head\.bias\); no checkpoint was written"
    with pytest.raises(NonFiniteLossError, match=expected):
        loop.writer.save(2, {"samples_consumed": 16})
    assert [path.name for path in store.whole_checkpoints(tmp_path / "checkpoints")] == ["step_00000001"]
