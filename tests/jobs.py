"""Small pre-training jobs through the deepspeed launcher, for tests."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import torch

from bnb_ds.checkpoint.store import whole_checkpoints
from bnb_ds.checkpoint.weights import read_weights
from bnb_ds.train.tracking import read_metrics, read_scalars
from tests import launching
from tests.fork_server import ForkServer, Launch

DS_CONFIG = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 3e-3, "weight_decay": 0.01}},
    "zero_optimization": {"stage": 1},
}
RECIPE = """
output_dir: {output}
steps: 8
model:
  size: {{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64,
         max_position_embeddings: 64}}
data: {{shards: {shards}, max_length: 24}}
intervals: {{log_steps: 1, eval_steps: 4, checkpoint_steps: 3, eval_samples: 5}}
"""


class Job:
    """One output directory and how to launch into it."""

    def __init__(self, folder: Path, shards: Path, name: str = "run", **ds_changes):
        folder.mkdir(exist_ok=True)
        self.output = folder / name
        self.recipe = folder / f"{name}.yaml"
        self.recipe.write_text(RECIPE.format(output=self.output, shards=shards))
        self.ds_config = folder / f"{name}.json"
        self.ds_config.write_text(json.dumps({**DS_CONFIG, **ds_changes}))

    def arguments(self, *more: str) -> list[str]:
        """The arguments of `runs/pretrain.py`."""
        return [str(self.recipe), "--deepspeed_config", str(self.ds_config), *more]

    def command(self, *arguments: str, ranks: int = 2) -> list[str]:
        """The command line with the launcher."""
        return [*launching.launcher(ranks), "runs/pretrain.py", *self.arguments(*arguments)]

    def fork(self, server: ForkServer, *arguments: str, ranks: int = 2, **variables: str) -> Launch:
        """Start ranks without a launcher. Each launch prints into a file of its own."""
        number = len(list(self.recipe.parent.glob(f"{self.output.name}.*.log")))
        log = self.recipe.with_name(f"{self.output.name}.{number}.log")
        return server.launch(self.arguments(*arguments), log, ranks=ranks, **variables)

    def train_forked(self, server: ForkServer, *arguments: str, ranks: int = 2, **variables: str) -> str:
        """Run forked ranks to the end, and return their output. The job must succeed."""
        launch = self.fork(server, *arguments, ranks=ranks, **variables)
        assert launch.wait() == [0] * ranks, launch.text()
        return launch.text()

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of `metrics.jsonl` so far."""
        path = self.output / "metrics.jsonl"
        return read_metrics(path) if path.exists() else []

    def last_step(self) -> int:
        """The last step that has been logged."""
        return max((row["step"] for row in self.metrics()), default=0)

    def train(self, *arguments: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
        """Run the job to the end. It must succeed."""
        result = launching.run(self.command(*arguments, ranks=ranks))
        assert result.returncode == 0, result.stdout + result.stderr
        return result

    def scalars(self) -> dict[str, list[tuple[int, float]]]:
        """The scalars that TensorBoard's reader finds: tag -> (step, value)."""
        return read_scalars(self.output / "runs")

    def weights(self) -> dict[str, torch.Tensor]:
        """Consolidated weights of the newest checkpoint."""
        return read_weights(whole_checkpoints(self.output / "checkpoints")[-1])
