"""The command line of ``runs/pretrain.py`` and ``runs/finetune.py``, which are ``bnb-ds pretrain`` and ``finetune``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from bnb_ds.checkpoint.lasting import EXTEND_FLAG
from bnb_ds.common.arguments import CommandParser, describe, positive
from bnb_ds.common.program import lost_interrupts, speak_utf8
from bnb_ds.errors import ConfigError, run_reporting_errors


@dataclass(frozen=True)
class Launch:
    """The flags of one launch. Unlike the recipe, they are no settings of the run."""

    #: ``never``, ``auto`` or a path; see :meth:`bnb_ds.checkpoint.run_dir.RunDir.find_resume`
    resume: str = "never"
    #: start from the weights of the checkpoint, with a fresh optimizer
    weights_only: bool = False
    #: ``steps``, ``epochs`` and ``schedule`` may differ from those that the run was started with
    extend: bool = False
    #: end after this step, with a checkpoint; the schedule stays that of the whole run
    stop_at: int | None = None
    #: first and last step to trace
    profile_steps: tuple[int, int] | None = None

    @property
    def resume_flags(self) -> dict[str, Any]:
        """What `bnb_ds.checkpoint.start.find_start` asks for."""
        return {"resume": self.resume, "weights_only": self.weights_only, "extend": self.extend}


#: a launch without flags
NEW_RUN = Launch()


@dataclass(frozen=True)
class Prepared:
    """A launch whose settings have been read and checked."""

    #: returns the lines that ``--dry-run`` prints; refuses what ``run`` would refuse
    describe: Callable[[Launch], list[str]]
    #: trains, in this process
    run: Callable[[Launch], None]


#: parsed command line, number of ranks -> the prepared launch
Prepare: TypeAlias = Callable[[argparse.Namespace, int], Prepared]


@dataclass(frozen=True)
class Program:
    """What a program that trains says of itself, and how it prepares a launch.

    Attributes:
        name: ``pretrain`` or ``finetune``.
        description: shown by ``--help``.
        example: a recipe and a DeepSpeed JSON that are shipped, for ``--help``.
        prepare: reads and checks the settings.
    """

    name: str
    description: str
    example: str
    prepare: Prepare


def run_program(program: Program) -> int:
    """Parse the command line, prepare the launch, then train or (with ``--dry-run``) describe the run.

    Returns:
        The exit code: 2 for an error that the user can fix.
    """
    speak_utf8()
    script = f"{program.name}.py"
    args = launch_parser(program).parse_args()
    return run_reporting_errors(script, lambda: args.run(args))


def launch_parser(program: Program) -> CommandParser:
    """The parser of a script that the deepspeed launcher starts."""
    parser = CommandParser(prog=f"{program.name}.py")
    describe(parser, program.description, f'deepspeed --num_gpus 8 "$(bnb-ds path {program.name})" {program.example}')
    _add_launch(parser, program)
    return parser


def add_command(command: CommandParser, program: Program, example: str) -> None:
    """Make a command of ``bnb-ds`` that is the program in one process; ``example`` is its arguments."""
    several = f'deepspeed --num_gpus 8 "$(bnb-ds path {program.name})" RECIPE --deepspeed-config JSON'
    describe(
        command,
        f"{program.description}\n\nThis is one process. On several GPUs, with the same flags:\n  {several}",
        f"bnb-ds {program.name} {example}",
    )
    _add_launch(command, program)


def _add_launch(parser: CommandParser, program: Program) -> None:
    """Add the arguments of a launch; ``run`` then trains, or describes the run."""
    parser.intermixed = True
    add_launch_arguments(parser)
    parser.set_defaults(run=lambda args: _launch(program, args))


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says which run is meant and how it begins. ``bnb-ds check`` takes the same command line."""
    parser.add_argument(
        "recipe",
        help="YAML file with the settings of the run, or the name of a shipped one (`bnb-ds recipes` lists them)",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key.path=value",
        help="replace a value of the recipe, for example steps=2000 (default: none)",
    )
    parser.add_argument(
        "--deepspeed-config",
        required=True,
        metavar="JSON",
        help="DeepSpeed JSON with batch sizes, precision, ZeRO stage and optimizer (required): a file, or the name of a"
        " shipped one (`bnb-ds recipes`)",
    )
    _add_resume_flags(parser)
    parser.add_argument(
        "--profile-steps",
        metavar="FIRST:LAST",
        help="write a trace of these steps of rank 0 into output_dir/profile, for example 100:104 (default: no trace)",
    )
    parser.add_argument(
        "--stop-at",
        type=positive,
        metavar="STEP",
        help="save a checkpoint and end this launch after this step (default: the last step of the run)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the settings, print what the run would do, and exit; no GPU is used (default: train)",
    )
    parser.add_argument(
        "--world-size",
        type=positive,
        metavar="RANKS",
        help="without training: number of ranks to plan for (default: the launcher's, or 1 without a launcher)",
    )
    parser.add_argument("--local-rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it


def _add_resume_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        default="never",
        metavar="never|auto|PATH",
        help="never: start a new run; auto: continue from the newest intact checkpoint in output_dir, or start a new"
        " run if there is none; PATH: continue from this checkpoint, or from the newest one of this run (default"
        " %(default)s)",
    )
    parser.add_argument(
        "--resume-weights-only",
        action="store_true",
        help="with --resume: load only the weights of the checkpoint and start with a fresh optimizer (default: load"
        " its optimizer too)",
    )
    parser.add_argument(
        EXTEND_FLAG,
        action="store_true",
        help="with --resume: the recipe may give other steps, epochs or schedule than the run began with (default: they"
        " must be the same)",
    )


def _launch(program: Program, args: argparse.Namespace) -> None:
    try:
        with lost_interrupts():
            _train_or_describe(program, args)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("add --resume auto to continue from the newest checkpoint, if there is one") from None


def _train_or_describe(program: Program, args: argparse.Namespace) -> None:
    launch, world_size = read_launch(args)

    from transformers.utils.logging import disable_progress_bar

    from bnb_ds.distributed import ranks

    disable_progress_bar()  # transformers shows one while it loads and saves weights
    prepared = program.prepare(args, world_size)
    if not args.dry_run:
        prepared.run(launch)
    elif ranks.is_main():
        print("\n".join(prepared.describe(launch)))


def read_launch(args: argparse.Namespace) -> tuple[Launch, int]:
    """The flags of the launch, and its number of ranks.

    Raises:
        ConfigError: flags that do not go together, or ``--profile-steps`` is not a range.
    """
    from bnb_ds.distributed import ranks

    if args.world_size is not None and not args.dry_run:
        raise ConfigError("--world-size needs --dry-run; a real run takes the number of ranks from its launcher")
    return read_flags(args), args.world_size or ranks.world_size()


def read_flags(args: argparse.Namespace) -> Launch:
    """The flags of the launch; raises as `read_launch`."""
    from bnb_ds.train.profiling import parse_range

    if args.resume_weights_only and args.resume == "never":
        raise ConfigError("--resume-weights-only needs --resume auto or --resume PATH")
    if args.extend and args.resume == "never":
        raise ConfigError(f"{EXTEND_FLAG} needs --resume auto or --resume PATH")
    profile_steps = parse_range(args.profile_steps) if args.profile_steps else None
    return Launch(args.resume, args.resume_weights_only, args.extend, args.stop_at, profile_steps)
