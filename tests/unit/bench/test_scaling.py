"""The model of a step's time on many GPUs, against simulations of its parts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bnb_ds.bench.scaling import GPUS, Setting, Traffic, advice, of_ranks, ring_seconds, slowest, step_time, traffic
from bnb_ds.cli import main
from bnb_ds.errors import ConfigError
from bnb_ds.modeling import BnbConfig
from tests.launching import REPOSITORY

OPTIMIZER = {"type": "AdamW", "params": {"lr": 1e-4}}
A100 = REPOSITORY / "ds_configs" / "a100_bf16_zero2.json"
PARAMETERS = 240_000_000


def ring_all_reduce(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scatter-reduce and gather around a ring, hop by hop: the results of all ranks, and what each has sent."""
    num_ranks = len(values)
    parts = [np.array_split(row.copy(), num_ranks) for row in values]
    sent = np.zeros(num_ranks, np.int64)
    for hop in range(2 * (num_ranks - 1)):
        moved = []
        for rank in range(num_ranks):
            part = (rank - hop) % num_ranks if hop < num_ranks - 1 else (rank + 1 - (hop - num_ranks + 1)) % num_ranks
            moved.append((rank, part, parts[rank][part].copy()))
            sent[rank] += parts[rank][part].size
        for rank, part, numbers in moved:
            to = (rank + 1) % num_ranks
            parts[to][part] = parts[to][part] + numbers if hop < num_ranks - 1 else numbers
    return np.stack([np.concatenate(of_rank) for of_rank in parts]), sent


@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_a_ring_sends_what_the_model_says(num_ranks):
    values = np.random.default_rng(0).integers(0, 9, (num_ranks, 48))
    reduced, sent = ring_all_reduce(values)
    assert (reduced == values.sum(0)).all()
    assert set(sent) == {Traffic(48, 0, 0).sent(num_ranks)}


@pytest.mark.parametrize("num_ranks", [2, 8, 128, 1024])
def test_the_slowest_of_many_ranks(num_ranks):
    draws = np.random.default_rng(0).standard_normal((4000, num_ranks)).max(1)
    assert slowest(num_ranks) == pytest.approx(draws.mean(), rel=0.03)
    assert slowest(1) == 0


def config_of(tmp_path, stage=1, micro=4, batch=64, **more):
    path = tmp_path / "ds.json"
    zero = {"stage": stage}
    sizes = {"train_batch_size": batch, "train_micro_batch_size_per_gpu": micro}
    path.write_text(json.dumps({**sizes, "optimizer": OPTIMIZER, "zero_optimization": zero, **more}))
    return path


@pytest.mark.parametrize(
    ("stage", "more", "expected"),
    [
        (0, {}, (4, 0, 0)),
        (1, {}, (4, 0, 4)),
        (1, {"fp16": {"enabled": True}, "communication_data_type": "fp32"}, (4, 0, 2)),
        (1, {"bf16": {"enabled": True}}, (2, 0, 2)),
        (2, {"bf16": {"enabled": True}}, (2 * 2, 0, 2)),
        (3, {"bf16": {"enabled": True}}, (0, 2 * 2, 2 * 2)),
    ],
)
def test_the_traffic_of_each_stage(tmp_path, stage, more, expected):
    ds_config = of_ranks(config_of(tmp_path, stage, **more), 8)  # two micro steps
    assert traffic(1000, ds_config) == tuple(1000 * each for each in expected)


def test_the_micro_batch_shrinks_with_a_ranks_share(tmp_path):
    path = config_of(tmp_path, micro=6, batch=96)
    found = {n: of_ranks(path, n) for n in (1, 8, 32, 96, 64)}
    sizes = {n: (each.micro_batch, each.accumulation_steps) for n, each in found.items() if each is not None}
    assert sizes == {1: (6, 16), 8: (6, 2), 32: (3, 1), 96: (1, 1)}
    assert of_ranks(path, 64, batch=128).micro_batch == 2


def times_on(counts, setting, path=A100, config=None, **more):
    bert = {"vocab_size": 28_996, "num_hidden_layers": 12}
    config = config or BnbConfig(encoder=bert, decoder=bert, decoder_positions="shared")
    planned = [of_ranks(path, n, **more) for n in counts]
    return [step_time(config, PARAMETERS, each, np.array([512]), setting) for each in planned], planned[0]


def test_an_ideal_cluster_computes_and_does_nothing_else():
    setting = Setting(GPUS["a100"], efficiency=0.5, host_seconds=0, link=1e15, network=1e15, latency=0, variation=0)
    (one, many), _ = times_on([1, 128], setting)
    assert one.compute == pytest.approx(128 * many.compute)
    assert one.mfu(312e12) == pytest.approx(0.5, rel=1e-3)
    assert (many.waiting, many.traffic) == pytest.approx((0, 0), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "counts", "told"),
    [
        ({"network": 1e9}, [1, 8, 64], ["because of traffic", "Take ZeRO stage 1, which sends gradients once a step"]),
        ({"variation": 0.5}, [1, 8, 64], ["because of waiting", "Count micro batches in tokens"]),
        ({"host_seconds": 0.3}, [1, 256], ["because of launches", "too small to keep a GPU busy"]),
        ({"storage": 1e6}, [1, 64], ["because of saving", "Save less often"]),
        ({}, [1, 8, 128], ["every GPU does at least 70% of the work of one alone, up to 128 GPUs"]),
    ],
)
def test_where_it_stops_scaling_and_what_to_set(changes, counts, told):
    setting = Setting(GPUS["a100"], **changes)
    times, ds_config = times_on(counts, setting)
    lines = "\n".join(advice(times, ds_config, setting))
    for words in told:
        assert words in lines


def test_stage_1_has_other_ways_out_than_stage_2(tmp_path):
    setting = Setting(GPUS["a100"], network=1e9)
    path = config_of(tmp_path, 1, micro=10, batch=1280, bf16={"enabled": True})
    times, ds_config = times_on([1, 64], setting, path)
    assert "Take a larger train_batch_size (with LAMB" in "\n".join(advice(times, ds_config, setting))


def test_traffic_that_computation_hides_costs_nothing(tmp_path):
    setting = Setting(GPUS["a100"], network=10e9)
    zero = {"stage": 2, "overlap_comm": True, "reduce_bucket_size": PARAMETERS // 10}
    half = {"bf16": {"enabled": True}, "micro": 10, "batch": 1280}
    (hidden,), _ = times_on([128], setting, config_of(tmp_path, zero_optimization=zero, **half))
    (open_,), _ = times_on([128], setting, config_of(tmp_path, 2, **half))
    assert hidden.hidden + hidden.traffic == pytest.approx(open_.traffic)
    assert hidden.hidden == pytest.approx(min(0.9 * open_.traffic, hidden.compute * 2 / 3))
    (late,), _ = times_on(
        [128], setting, config_of(tmp_path, zero_optimization={**zero, "reduce_bucket_size": 10**9}, **half)
    )
    assert late.hidden == 0
    slow = ring_seconds(1e9, 16, 1, setting)
    assert slow == pytest.approx(1e9 / (0.75 * 10e9) + 30 * setting.latency)
    assert ring_seconds(1e9, 8, 1, setting) == pytest.approx(1e9 / (0.75 * 300e9) + 14 * setting.latency)


def test_the_command(capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert main(["plan", "--gpus", "128", "--gpu", "a100"]) == 0
    out = capsys.readouterr().out
    assert "A100, base, 244,440,396 parameters, ds_configs/a100_bf16_zero2.json, 1,280 samples a step" in out
    assert "| 128 < | 10 x 1 |" in out
    assert "512 GPUs: 1,280 samples cannot be divided among them; give a larger batch" in out
    assert "52% of the peak" in out
    assert main(["plan", "--gpu", "v100", "--gpus", "8", "--deepspeed_config", str(A100)]) == 2
    assert "a V100 has no bf16; use ds_configs/v100_fp16_zero1.json" in capsys.readouterr().err


def test_a_v100_has_no_bf16():
    with pytest.raises(ConfigError, match="a V100 has no bf16"):
        times_on([1], Setting(GPUS["v100"]))


def test_a_number_of_gpus_that_cannot_share_the_batch_is_told(capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert main(["plan", "--gpus", "3", "--gpu", "a100", "--host-ms", "1e1"]) == 0
    out = capsys.readouterr().out
    assert "3 GPUs: 1,280 samples cannot be divided among them" in out
    assert "512 GPUs" not in out


@pytest.mark.parametrize(
    "flag",
    [
        *(["--efficiency", value] for value in ("1.5", "nan", "0")),
        *(["--variation", value] for value in ("-1", "inf", "²")),
        *([name, value] for name in ("--network", "--link", "--storage") for value in ("fast", "0")),
    ],
)
def test_numbers_out_of_range_are_refused(flag, capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--gpu", "a100", *flag])
    assert f"{flag[1]!r}: give a number" in capsys.readouterr().err
