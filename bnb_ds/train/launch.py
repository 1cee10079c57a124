"""What ``runs/pretrain.py`` and ``runs/finetune.py`` share: their command line, and what one launch is asked to do."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from bnb_ds.checkpoint.lasting import EXTEND_FLAG
from bnb_ds.errors import run_reporting_errors


@dataclass(frozen=True)
class Launch:
    """What one launch is asked to do, beyond the settings of the run."""

    #: ``never``, ``auto`` or a path; see :meth:`bnb_ds.checkpoint.run_dir.RunDir.find_resume`
    resume: str = "never"
    #: start from the weights of the checkpoint with a fresh optimizer
    weights_only: bool = False
    #: ``steps``, ``epochs`` and ``schedule`` may differ from those that the run was started with
    extend: bool = False
    #: end after that step, with a checkpoint; the schedule stays that of the whole run
    stop_at: int | None = None
    #: first and last step to trace
    profile_steps: tuple[int, int] | None = None


@dataclass(frozen=True)
class Prepared:
    """A launch whose settings have been read and checked."""

    #: lines for ``--dry-run``
    describe: Callable[[], list[str]]
    #: the training itself, in this process
    run: Callable[[Launch], None]


def run_program(
    program: str, description: str, recipes: str, prepare: Callable[[argparse.Namespace, int], Prepared]
) -> int:
    """Read the command line, prepare the launch for its number of ranks, then describe or run it.

    Returns:
        The exit code: 2 for an error that the user can fix.
    """
    parser = launch_parser(program, description, recipes)
    args = parser.parse_intermixed_args()

    def body() -> None:
        launch, world_size = read_launch(parser, args)

        from transformers.utils.logging import disable_progress_bar

        from bnb_ds.distributed import ranks

        disable_progress_bar()  # of loading and saving weights
        prepared = prepare(args, world_size)
        if not args.dry_run:
            prepared.run(launch)
        elif ranks.is_main():
            print("\n".join(prepared.describe()))

    return run_reporting_errors(program, body)


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
        EXTEND_FLAG, action="store_true", help="continue a run with other steps, epochs or schedule than it began with"
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
    from bnb_ds.train.profiling import parse_range

    if args.world_size is not None and not args.dry_run:
        parser.error("--world-size goes with --dry-run; a real run takes it from its launcher")
    if (args.stop_at is not None and args.stop_at <= 0) or (args.world_size is not None and args.world_size <= 0):
        parser.error("--stop-at and --world-size take positive whole numbers")
    if args.resume_weights_only and args.resume == "never":
        parser.error("--resume-weights-only goes with --resume auto or --resume PATH")
    if args.extend and args.resume == "never":
        parser.error(f"{EXTEND_FLAG} goes with --resume auto or --resume PATH")
    profile_steps = parse_range(args.profile_steps) if args.profile_steps else None
    world_size = args.world_size or ranks.world_size()
    launch = Launch(args.resume, args.resume_weights_only, args.extend, args.stop_at, profile_steps)
    return launch, world_size
