"""The program ``runs/pretrain.py``."""

from __future__ import annotations

import argparse
import sys

from bnb_ds.train.launch import Prepared, run_program

_DESCRIPTION = """\
Pre-train BERT-NAR-BERT with DeepSpeed.

The recipe names the model, the prepared training data, the objective and the
number of steps. The DeepSpeed JSON sets batch sizes, precision, ZeRO stage and
optimizer. Checkpoints, logs and settings are written to output_dir."""
_EXAMPLE = """\
runs/recipes/pretrain/wikipedia_base.yaml \\
      --deepspeed_config ds_configs/a100_bf16_zero2.json --resume auto"""


def main() -> int:
    """Parse the command line and pre-train; returns the exit code."""
    return run_program("pretrain.py", _DESCRIPTION, _EXAMPLE, _prepare)


def _prepare(args: argparse.Namespace, world_size: int) -> Prepared:
    from bnb_ds.pretrain.plan import describe_dry_run, make_plan
    from bnb_ds.pretrain.run import pretrain

    plan = make_plan(args.recipe, args.overrides, args.deepspeed_config, world_size)
    return Prepared(lambda launch: describe_dry_run(plan, launch), lambda launch: pretrain(plan, launch))


if __name__ == "__main__":
    sys.exit(main())
