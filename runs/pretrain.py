"""Pre-train BnB: parse and call.

deepspeed --num_gpus 8 runs/pretrain.py RECIPE --deepspeed_config JSON [key.path=value ...]
"""

from __future__ import annotations

import argparse
import sys

from bnb_ds.errors import run_reporting_errors
from bnb_ds.train.launch import launch_parser, read_launch


def main() -> int:
    parser = launch_parser("pretrain.py", "Pre-train BERT-NAR-BERT under DeepSpeed.", "runs/recipes/pretrain/")
    args = parser.parse_intermixed_args()
    return run_reporting_errors("pretrain.py", lambda: call(parser, args))


def call(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    launch, world_size = read_launch(parser, args)

    from bnb_ds.distributed import ranks
    from bnb_ds.pretrain.plan import describe_dry_run, make_plan
    from bnb_ds.pretrain.run import pretrain

    plan = make_plan(args.recipe, args.overrides, args.deepspeed_config, world_size)
    if args.dry_run:
        if ranks.is_main():
            print("\n".join(describe_dry_run(plan)))
        return
    pretrain(plan, launch)


if __name__ == "__main__":
    sys.exit(main())
