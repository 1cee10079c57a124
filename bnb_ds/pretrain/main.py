"""The program ``runs/pretrain.py``."""

from __future__ import annotations

import argparse
import sys

from bnb_ds.train.launch import Prepared, run_program


def main() -> int:
    """Parse the command line and pre-train; returns the exit code."""
    return run_program("pretrain.py", "Pre-train BERT-NAR-BERT under DeepSpeed.", "runs/recipes/pretrain/", _prepare)


def _prepare(args: argparse.Namespace, world_size: int) -> Prepared:
    from bnb_ds.pretrain.plan import describe_dry_run, make_plan
    from bnb_ds.pretrain.run import pretrain

    plan = make_plan(args.recipe, args.overrides, args.deepspeed_config, world_size)
    return Prepared(lambda: describe_dry_run(plan), lambda launch: pretrain(plan, launch))


if __name__ == "__main__":
    sys.exit(main())
