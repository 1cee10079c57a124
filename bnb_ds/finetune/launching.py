"""Fine-tuning in a job of its own, whose failure leaves the caller alive."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bnb_ds.common.children import run_in_session
from bnb_ds.distributed import ranks


def run_finetuning(recipe: str, settings: Sequence[str], ds_config: str, num_gpus: int) -> int:
    """Fine-tune; what was begun is resumed. Returns the exit code.

    Args:
        recipe: path or name of the recipe.
        settings: its overrides.
        ds_config: path or name of the DeepSpeed JSON.
        num_gpus: ranks on this host. One needs no launcher, which would import DeepSpeed twice more.
    """
    module = ["bnb_ds.finetune"]
    if num_gpus > 1:
        # The launcher's own port may be in use: by another sweep of this host, for example.
        flags = ["--num_gpus", str(num_gpus), "--master_port", str(ranks.free_port()), "--module"]
        module = ["deepspeed.launcher.runner", *flags, *module]
    arguments = [recipe, *settings, "--deepspeed-config", ds_config, "--resume", "auto"]
    return run_in_session([sys.executable, "-m", *module, *arguments])
