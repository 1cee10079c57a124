"""The program ``runs/finetune.py``; `bnb-ds glue` starts it as a module."""

from __future__ import annotations

import argparse
import sys

from bnb_ds.common.arguments import CommandParser
from bnb_ds.train.launch import Prepared, Program, add_command, run_program

_DESCRIPTION = """\
Fine-tune a model on a downstream task with DeepSpeed.

The recipe names the task, the model and the number of epochs or steps. The
DeepSpeed JSON sets batch sizes, precision, ZeRO stage and optimizer.
Checkpoints, logs and settings are written to output_dir, the best model to
output_dir/best."""
_EXAMPLE = """\
runs/recipes/finetune/glue/sst2.yaml \\
      --deepspeed-config ds_configs/finetune_glue.json --resume auto"""


def main() -> int:
    """Parse the command line and fine-tune; returns the exit code."""
    return run_program(PROGRAM)


def add_arguments(command: CommandParser) -> None:
    """Add the arguments of ``bnb-ds finetune``, which is the same program in one process."""
    example = "runs/recipes/finetune/sst2_small.yaml --deepspeed-config ds_configs/cpu_finetune.json --resume auto"
    add_command(command, PROGRAM, example)


def _prepare(args: argparse.Namespace, world_size: int) -> Prepared:
    from bnb_ds.finetune.plan import describe_dry_run, make_plan
    from bnb_ds.finetune.run import finetune

    plan = make_plan(args.recipe, args.overrides, args.deepspeed_config, world_size)
    return Prepared(lambda launch: describe_dry_run(plan, launch), lambda launch: finetune(plan, launch))


#: what `main` and `add_arguments` share
PROGRAM = Program("finetune", _DESCRIPTION, _EXAMPLE, _prepare)


if __name__ == "__main__":
    sys.exit(main())
