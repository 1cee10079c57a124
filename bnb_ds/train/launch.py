"""The command line of ``runs/pretrain.py`` and ``runs/finetune.py``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnb_ds.train.job import Launch


def launch_parser(program: str, description: str, recipes: str) -> argparse.ArgumentParser:
    """Parser of a script that the deepspeed launcher starts; ``recipes`` is where shipped ones are."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("recipe", help=f"YAML file; shipped ones are under {recipes}")
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
    return parser


def read_launch(parser: argparse.ArgumentParser, args: argparse.Namespace) -> tuple[Launch, int]:
    """What the launch is asked to do, and for how many ranks; faults of the flags end the program as argparse does.

    Raises:
        ConfigError: ``--profile-steps`` is no range.
    """
    from bnb_ds.distributed import ranks
    from bnb_ds.train.job import Launch
    from bnb_ds.train.profiling import parse_range

    if args.world_size is not None and not args.dry_run:
        parser.error("--world-size goes with --dry-run; a real run takes it from its launcher")
    if (args.stop_at is not None and args.stop_at <= 0) or (args.world_size is not None and args.world_size <= 0):
        parser.error("--stop-at and --world-size take positive whole numbers")
    if args.resume_weights_only and args.resume == "never":
        parser.error("--resume-weights-only goes with --resume auto or --resume PATH")
    profile_steps = parse_range(args.profile_steps) if args.profile_steps else None
    world_size = args.world_size or ranks.world_size()
    return Launch(args.resume, args.resume_weights_only, args.stop_at, profile_steps), world_size
