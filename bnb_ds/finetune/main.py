"""The program ``runs/finetune.py``; `bnb-ds glue` starts it as a module."""

from __future__ import annotations

import argparse
import sys

from bnb_ds.train.launch import Prepared, run_program

_DESCRIPTION = """\
Fine-tune a model on a downstream task with DeepSpeed.

The recipe names the task, the model and the number of epochs or steps. The
DeepSpeed JSON sets batch sizes, precision, ZeRO stage and optimizer.
Checkpoints, logs and settings are written to output_dir, the best model to
output_dir/best."""
_EXAMPLE = """\
runs/recipes/finetune/glue/sst2.yaml \\
      --deepspeed_config ds_configs/finetune_glue.json --resume auto"""


def main() -> int:
    """Parse the command line and fine-tune; returns the exit code."""
    return run_program("finetune.py", _DESCRIPTION, _EXAMPLE, _prepare)


def _prepare(args: argparse.Namespace, world_size: int) -> Prepared:
    from bnb_ds.finetune.plan import describe_dry_run, make_plan
    from bnb_ds.finetune.run import finetune

    plan = make_plan(args.recipe, args.overrides, args.deepspeed_config, world_size)
    return Prepared(lambda launch: describe_dry_run(plan, launch), lambda launch: finetune(plan, launch))


if __name__ == "__main__":
    sys.exit(main())
