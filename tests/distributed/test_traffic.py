"""What DeepSpeed hands to collective operations in a step is what the model of a step's time assumes."""

from __future__ import annotations

import json

import pytest

from bnb_ds.bench.scaling import of_ranks, traffic
from tests.distributed.traffic import model

pytestmark = pytest.mark.slow

OPTIMIZER = {"type": "AdamW", "params": {"lr": 1e-3}}
HALF = {"bf16": {"enabled": True}}
CASES = {
    "0": (0, {}),
    "1": (1, {}),
    "1, bf16": (1, HALF),
    "2": (2, {}),
    "2, bf16 with fp32 gradients": (2, {**HALF, "data_types": {"grad_accum_dtype": "fp32"}}),
    "3": (3, {}),
    "3, bf16": (3, HALF),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_sends_what_the_model_says(name, tmp_path, fork_server):
    stage, more = CASES[name]
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0} if stage == 3 else {"stage": stage}
    path, output = tmp_path / "ds.json", tmp_path / "bytes.json"
    sizes = {"train_batch_size": 4, "train_micro_batch_size_per_gpu": 1}
    path.write_text(json.dumps({**sizes, "optimizer": OPTIMIZER, "zero_optimization": zero, **more}))
    launch = fork_server.launch([str(path), "2", str(output)], tmp_path / "log", program="tests.distributed.traffic")
    assert launch.wait() == [0, 0], launch.text()
    sent = json.loads(output.read_text())[-1]
    num_parameters = sum(parameter.numel() for parameter in model().parameters())
    expected = traffic(num_parameters, of_ranks(path, 2))
    reductions = {key: value for key, value in sent.items() if "gather" not in key and key != "broadcast"}
    # ZeRO pads its partitions to whole alignments.
    assert sum(reductions.values()) == pytest.approx(expected.all_reduce, rel=0.02), sent
    assert sum(sent.values()) - sum(reductions.values()) == pytest.approx(expected.all_gather, rel=0.02), sent
