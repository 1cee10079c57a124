"""Pre-train BnB: parse and call.

deepspeed --num_gpus 8 runs/pretrain.py RECIPE --deepspeed_config JSON [key.path=value ...]
"""

from __future__ import annotations

import argparse
import sys

from bnb_ds.errors import run_reporting_errors


def main() -> int:
    parser = argparse.ArgumentParser(prog="pretrain.py", description="Pre-train BERT-NAR-BERT under DeepSpeed.")
    parser.add_argument("recipe", help="YAML file; shipped ones are under runs/recipes/pretrain/")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replace single values of the recipe")
    parser.add_argument("--deepspeed_config", required=True, help="JSON file; shipped ones are under ds_configs/")
    parser.add_argument(
        "--resume", default="never", metavar="never|auto|PATH", help="start afresh, go on, or go on from a checkpoint"
    )
    parser.add_argument(
        "--resume-weights-only", action="store_true", help="go on with the checkpoint's weights and a fresh optimizer"
    )
    parser.add_argument(
        "--profile-steps", metavar="FIRST:LAST", help="trace these steps of rank 0 into output_dir/profile"
    )
    parser.add_argument("--stop-at", type=int, metavar="STEP", help="end this launch after a step, with a checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print what follows, touch no GPU")
    parser.add_argument("--world-size", type=int, help="with --dry-run: the number of ranks to plan for")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    args = parser.parse_intermixed_args()
    return run_reporting_errors("pretrain.py", lambda: call(parser, args))


def call(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    from bnb_ds import distributed
    from bnb_ds.plan import describe_dry_run, make_plan
    from bnb_ds.pretraining import pretrain
    from bnb_ds.profiling import parse_range
    from bnb_ds.training import Launch

    if args.world_size is not None and not args.dry_run:
        parser.error("--world-size goes with --dry-run; a real run takes it from its launcher")
    if (args.stop_at is not None and args.stop_at <= 0) or (args.world_size is not None and args.world_size <= 0):
        parser.error("--stop-at and --world-size take positive whole numbers")
    if args.resume_weights_only and args.resume == "never":
        parser.error("--resume-weights-only goes with --resume auto or --resume PATH")
    profile_steps = parse_range(args.profile_steps) if args.profile_steps else None
    world_size = args.world_size or distributed.world_size()
    plan = make_plan(args.recipe, args.overrides, args.deepspeed_config, world_size)
    if args.dry_run:
        if distributed.is_main():
            print("\n".join(describe_dry_run(plan)))
        return
    pretrain(plan, Launch(args.resume, args.resume_weights_only, args.stop_at, profile_steps))


if __name__ == "__main__":
    sys.exit(main())
