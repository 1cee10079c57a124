"""`bnb-ds tune` and the learning-rate sweep of `bnb-ds glue`, with real trainings of small models."""

from __future__ import annotations

import json

import pytest
import yaml

from bnb_ds import cli
from tests.jobs import Job

pytest.importorskip("optuna", reason='needs optuna (`pip install ".[tune]"` in the checkout)')

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def test_a_search_in_pretraining(tmp_path, small_shards, capsys):
    job = Job(tmp_path, small_shards)
    space = tmp_path / "space.yaml"
    space.write_text("deepspeed: {optimizer.params.lr: [1e-9, 1e-2]}\nrecipe: {schedule.warmup_ratio: [0.0]}\n")
    command = ["tune", *job.arguments("steps=8"), "--space", str(space), "--output", str(tmp_path / "o")]
    assert cli.main([*command, "--jobs", "2"]) == 0
    shown = capsys.readouterr().out
    assert "  deepspeed.optimizer.params.lr = 0.01\n" in shown
    best = yaml.safe_load((tmp_path / "o" / "best.yaml").read_text())
    assert (best["output_dir"], best["steps"], best["schedule"]) == (str(job.output), 8, {"warmup_ratio": 0.0})
    assert json.loads((tmp_path / "o" / "best.json").read_text())["optimizer"]["params"]["lr"] == 0.01
    arguments = [str(tmp_path / "o" / "best.yaml"), "--deepspeed-config", str(tmp_path / "o" / "best.json")]
    assert f"  launch it with: bnb-ds pretrain {' '.join(arguments)}\n" in shown
    assert cli.main(["check", *arguments]) == 0


def test_glue_chooses_the_learning_rate_of_a_task(tmp_path, small_tokenizer, capfd):
    small_tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = [json.dumps({"sentence": "good film" if i % 2 else "bad play", "label": i % 2}) for i in range(32)]
    data = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation")}
    for path in data.values():
        (tmp_path / path).write_text("\n".join(rows) + "\n")
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    recipe = {
        "task": "sst2",
        "output_dir": "unused",
        "steps": 20,
        "model": {"kind": "bnb", "size": size},
        "data": {**data, "tokenizer": str(tmp_path / "tokenizer"), "cache_dir": str(tmp_path / "cache")},
        "intervals": {"eval_steps": 10},
    }
    (tmp_path / "sst2.yaml").write_text(yaml.safe_dump(recipe))
    ds_config = {"train_batch_size": 8, "optimizer": {"type": "AdamW", "params": {"lr": 1.0}}}
    (tmp_path / "ds.json").write_text(json.dumps(ds_config))
    command = ["glue", str(tmp_path / "sst2.yaml"), "--deepspeed_config", str(tmp_path / "ds.json")]
    command += ["--output", str(tmp_path / "o"), "--seeds", "1"]
    assert cli.main([*command, "--learning-rates", "1e-9", "3e-3"]) == 0
    shown = capfd.readouterr().out
    assert "Learning rates, chosen on validation among 1e-09, 0.003: SST-2 0.003.\n" in shown
    run = tmp_path / "o" / "sst2" / "seed-1"
    assert json.loads((run / "ds_config.resolved.json").read_text())["optimizer"]["params"]["lr"] == 3e-3
    assert cli.main(command) == 2
    assert "is finished, but with other settings: optimizer.params.lr: 0.003 -> 1.0" in capfd.readouterr().err
