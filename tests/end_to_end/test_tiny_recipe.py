"""The recipe for quick trials learns enough to be seen."""

from __future__ import annotations

import json

import pytest

from bnb_ds.cli import main
from bnb_ds.train.tracking import read_metrics
from tests.launching import REPOSITORY

pytestmark = pytest.mark.slow


def test_the_tiny_recipe_learns_to_write(small_shards, fork_server, tmp_path, capsys):
    recipe, ds_config = REPOSITORY / "runs/recipes/pretrain/tiny.yaml", tmp_path / "ds.json"
    settings = json.loads((REPOSITORY / "ds_configs/cpu_debug.json").read_text())
    # A step has the same samples, at once.
    ds_config.write_text(json.dumps({**settings, "train_micro_batch_size_per_gpu": 16}))
    places = [f"data.shards={small_shards}", f"output_dir={tmp_path}/run"]
    # On a vocabulary of 600 it learns in fewer steps than the recipe has.
    arguments = [
        str(recipe),
        "--deepspeed_config",
        str(ds_config),
        "--stop-at",
        "150",
        "intervals.eval_steps=150",
        *places,
    ]
    code, text = fork_server.run("pretrain.py", arguments, tmp_path / "log")
    assert code == 0, text
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["eval/token_accuracy"] for row in rows if "eval/token_accuracy" in row][-1] > 0.3
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "model")]) == 0
    capsys.readouterr()
    shown = ["--shards", str(small_shards), "--num", "4", "--max-length", "24"]
    assert main(["reconstruct", str(tmp_path / "model"), *shown]) == 0
    captured = capsys.readouterr()
    outputs = [line for line in captured.out.splitlines() if line.startswith("output")]
    assert len(outputs) == 4
    assert all(len(line.split()) > 5 for line in outputs), outputs
    assert "warning" not in captured.err
