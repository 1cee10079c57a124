"""Fine-tune BnB, or a model it is compared with, on a downstream task: parse and call.

deepspeed --num_gpus 8 runs/finetune.py RECIPE --deepspeed_config JSON [key.path=value ...]
"""

from __future__ import annotations

import argparse
import sys

from bnb_ds.errors import run_reporting_errors
from bnb_ds.launch_arguments import launch_parser, read_launch


def main() -> int:
    parser = launch_parser("finetune.py", "Fine-tune on a downstream task under DeepSpeed.", "runs/recipes/finetune/")
    args = parser.parse_intermixed_args()
    return run_reporting_errors("finetune.py", lambda: call(parser, args))


def call(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    launch, world_size = read_launch(parser, args)

    from bnb_ds import distributed
    from bnb_ds.finetuning import describe_finetune_dry_run, finetune, make_finetune_plan

    plan = make_finetune_plan(args.recipe, args.overrides, args.deepspeed_config, world_size)
    if args.dry_run:
        if distributed.is_main():
            print("\n".join(describe_finetune_dry_run(plan)))
        return
    finetune(plan, launch)


if __name__ == "__main__":
    sys.exit(main())
