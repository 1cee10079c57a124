"""What DeepSpeed hands to collective operations in a step is what the model of a step's time assumes."""

from __future__ import annotations

import json

import pytest

from bnb_ds.bench.scaling import early_share, of_ranks, traffic
from tests.distributed.traffic import FROZEN, model

pytestmark = pytest.mark.slow

OPTIMIZER = {"type": "AdamW", "params": {"lr": 1e-3}}
HALF = {"bf16": {"enabled": True}}
CASES = {
    "0": (0, {}),
    "1": (1, {}),
    "1, bf16": (1, HALF),
    "2": (2, {}),
    "2, bf16 with fp32 gradients": (2, {**HALF, "data_types": {"grad_accum_dtype": "fp32"}}),
    "2, in buckets": (2, {"zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 12_000}}),
    "3": (3, {}),
    "3, in buckets": (3, {"zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 12_000}}),
    "3, bf16": (3, HALF),
    "3, gathered twice": (3, {"zero_optimization": {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_sends_what_the_model_says(name, tmp_path, fork_server):
    stage, more = CASES[name]
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0} if stage == 3 else {"stage": stage}
    more, zero = {**more}, {**zero, **more.get("zero_optimization", {})}
    more.pop("zero_optimization", None)
    path, output = tmp_path / "ds.json", tmp_path / "bytes.json"
    sizes = {"train_batch_size": 4, "train_micro_batch_size_per_gpu": 1}
    path.write_text(json.dumps({**sizes, "optimizer": OPTIMIZER, "zero_optimization": zero, **more}))
    launch = fork_server.launch([str(path), "2", str(output)], tmp_path / "log", program="tests.distributed.traffic")
    assert launch.wait() == [0, 0], launch.text()
    sent = json.loads(output.read_text())[-1]
    early = sent.pop("early", 0)
    num_parameters = sum(parameter.numel() for parameter in model().parameters())
    expected = traffic(num_parameters, of_ranks(path, 2))
    names = {
        "all_reduce": "all_reduce",
        "reduce_scatter_tensor": "reduce_scatter",
        "all_gather_into_tensor": "all_gather",
    }
    got = {"all_reduce": 0, "reduce_scatter": 0, "all_gather": 0}
    got |= {names.get(name, name): number for name, number in sent.items()}
    # ZeRO pads its partitions to whole alignments.
    assert got == pytest.approx(expected._asdict(), rel=0.02)
    reduced = got["all_reduce"] + got["reduce_scatter"]
    assert early / reduced == pytest.approx(early_share(num_parameters, of_ranks(path, 2)), abs=0.15)


@pytest.mark.parametrize("stage", [0, 2])
def test_frozen_weights_are_not_sent(stage, tmp_path, fork_server, monkeypatch):
    monkeypatch.setenv(FROZEN, "encoder embeddings")
    path, output = tmp_path / "ds.json", tmp_path / "bytes.json"
    sizes = {"train_batch_size": 4, "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}}
    path.write_text(json.dumps({**sizes, "optimizer": OPTIMIZER}))
    arguments, settings = [str(path), "2", str(output)], {FROZEN: "encoder embeddings"}
    launch = fork_server.launch(arguments, tmp_path / "log", program="tests.distributed.traffic", **settings)
    assert launch.wait() == [0, 0], launch.text()
    sent = json.loads(output.read_text())[-1]
    trained = sum(parameter.numel() for parameter in model().parameters() if parameter.requires_grad)
    assert trained < 0.6 * sum(parameter.numel() for parameter in model().parameters())
    expected = traffic(trained, of_ranks(path, 2))
    reduced = sum(sent.get(name, 0) for name in ("all_reduce", "reduce", "reduce_scatter_tensor"))
    assert reduced == pytest.approx(expected.all_reduce + expected.reduce_scatter, rel=0.02)
