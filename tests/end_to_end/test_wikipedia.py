"""The main job on real Wikipedia: parquet -> shards -> two CPU ranks, killed and resumed, watched by TensorBoard."""

from __future__ import annotations

import pytest

from bnb_ds.tracking import read_scalars
from tests import launching
from tests.distributed.test_pretraining import TAGS

pytestmark = pytest.mark.slow

STEPS = ["steps=5", "intervals.log_steps=1", "intervals.checkpoint_steps=2", "intervals.eval_samples=8"]


@pytest.fixture(scope="module")
def wikipedia_shards(shared_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("wikipedia") / "shards"
    parquet = shared_data / "wikipedia/articles-2015/train-00000-of-00004.parquet"
    tokenizer = shared_data / "tokenizers/bert-base-cased"
    command = ["bnb-ds", "prep", "text", "--input", parquet, "--tokenizer", tokenizer, "--output", output]
    result = launching.run([str(launching.BIN / command[0]), *map(str, command[1:])])
    assert result.returncode == 0, result.stderr
    return output


def test_pretraining_killed_and_resumed(wikipedia_shards, tmp_path):
    def command(name: str, *more: str) -> list[str]:
        script = ["runs/pretrain.py", "runs/recipes/pretrain/tiny.yaml"]
        script += ["--deepspeed_config", "ds_configs/cpu_debug.json", *more]
        places = [f"data.shards={wikipedia_shards}", f"output_dir={tmp_path / name}"]
        return [*launching.launcher(2), *script, *places, *STEPS]

    whole = launching.run(command("whole"))
    assert whole.returncode == 0, whole.stdout + whole.stderr
    scalars = read_scalars(tmp_path / "whole" / "runs")
    assert set(scalars) >= TAGS
    losses = scalars["train/loss"]
    assert losses[-1][1] < losses[0][1]

    process = launching.start(command("killed"))
    launching.wait_for((tmp_path / "killed/checkpoints/step_00000002").exists, process)
    launching.kill(process)
    resumed = launching.run(command("killed", "--resume", "auto"))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert read_scalars(tmp_path / "killed" / "runs")["train/loss"] == losses
