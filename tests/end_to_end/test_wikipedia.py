"""The main job on real Wikipedia: make shards from parquet, train on two CPU ranks, kill, resume, read TensorBoard."""

from __future__ import annotations

import signal

import pytest

from bnb_ds.cli import main
from bnb_ds.train.tracking import read_scalars
from tests.distributed.test_pretraining import TAGS
from tests.fork_server import Launch

pytestmark = pytest.mark.slow

STEPS = ["steps=5", "intervals.log_steps=1", "intervals.checkpoint_steps=2", "intervals.eval_samples=8"]


@pytest.fixture(scope="module")
def wikipedia_shards(shared_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("wikipedia") / "shards"
    parquet = shared_data / "wikipedia/articles-2015/train-00000-of-00004.parquet"
    tokenizer = shared_data / "tokenizers/bert-base-cased"
    places = ["--input", parquet, "--tokenizer", tokenizer, "--output", output]
    assert main(["prep", "text", *map(str, places)]) == 0
    return output


def test_pretraining_killed_and_resumed(wikipedia_shards, tmp_path, fork_server):
    def start(name: str, *more: str) -> Launch:
        arguments = ["runs/recipes/pretrain/tiny.yaml", "--deepspeed_config", "ds_configs/cpu_debug.json", *more]
        places = [f"data.shards={wikipedia_shards}", f"output_dir={tmp_path / name}"]
        return fork_server.launch([*arguments, *places, *STEPS], tmp_path / f"{name}{len(more)}.log")

    whole = start("whole")
    assert whole.wait() == [0, 0], whole.text()
    scalars = read_scalars(tmp_path / "whole" / "runs")
    assert set(scalars) >= TAGS
    losses = scalars["train/loss"]
    assert losses[-1][1] < losses[0][1]

    killed = start("killed")
    killed.wait_for((tmp_path / "killed/checkpoints/step_00000002").exists)
    for rank in range(2):
        killed.kill(rank)
    assert killed.wait() == [-signal.SIGKILL] * 2, killed.text()
    resumed = start("killed", "--resume", "auto")
    assert resumed.wait() == [0, 0], resumed.text()
    assert read_scalars(tmp_path / "killed" / "runs")["train/loss"] == losses
