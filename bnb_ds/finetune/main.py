"""What ``runs/finetune.py`` is, as a module: other commands start it through the launcher."""

from __future__ import annotations

import argparse
import sys

from bnb_ds.errors import run_reporting_errors
from bnb_ds.train.launch import launch_parser, read_launch


def main() -> int:
    """Parse the command line and fine-tune; returns the exit code."""
    parser = launch_parser("finetune.py", "Fine-tune on a downstream task under DeepSpeed.", "runs/recipes/finetune/")
    args = parser.parse_intermixed_args()
    return run_reporting_errors("finetune.py", lambda: _call(parser, args))


def _call(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    launch, world_size = read_launch(parser, args)

    from transformers.utils.logging import disable_progress_bar

    from bnb_ds.distributed import ranks
    from bnb_ds.finetune.run import describe_finetune_dry_run, finetune, make_finetune_plan

    disable_progress_bar()  # of loading and saving weights
    plan = make_finetune_plan(args.recipe, args.overrides, args.deepspeed_config, world_size)
    if args.dry_run:
        if ranks.is_main():
            print("\n".join(describe_finetune_dry_run(plan)))
        return
    finetune(plan, launch)


if __name__ == "__main__":
    sys.exit(main())
