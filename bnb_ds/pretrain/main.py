"""The program ``runs/pretrain.py``."""

from __future__ import annotations

import argparse
import sys

from bnb_ds.common.arguments import CommandParser
from bnb_ds.train.launch import Prepared, Program, add_command, run_program

_DESCRIPTION = """\
Pre-train BERT-NAR-BERT with DeepSpeed.

The recipe names the model, the prepared training data, the objective and the
number of steps. The DeepSpeed JSON sets batch sizes, precision, ZeRO stage and
optimizer. Checkpoints, logs and settings are written to output_dir."""
_EXAMPLE = """\
runs/recipes/pretrain/wikipedia_base.yaml \\
      --deepspeed-config ds_configs/a100_bf16_zero2.json --resume auto"""


def main() -> int:
    """Parse the command line and pre-train; returns the exit code."""
    return run_program(PROGRAM)


def add_arguments(command: CommandParser) -> None:
    """Add the arguments of ``bnb-ds pretrain``, which is the same program in one process."""
    example = "runs/recipes/pretrain/tiny.yaml --deepspeed-config ds_configs/cpu_debug.json --resume auto"
    add_command(command, PROGRAM, example)


def _prepare(args: argparse.Namespace, world_size: int) -> Prepared:
    from bnb_ds.pretrain.plan import describe_dry_run, make_plan
    from bnb_ds.pretrain.run import pretrain

    plan = make_plan(args.recipe, args.overrides, args.deepspeed_config, world_size)
    return Prepared(lambda launch: describe_dry_run(plan, launch), lambda launch: pretrain(plan, launch))


#: what `main` and `add_arguments` share
PROGRAM = Program("pretrain", _DESCRIPTION, _EXAMPLE, _prepare)


if __name__ == "__main__":
    sys.exit(main())
