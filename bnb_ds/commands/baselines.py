"""The commands ``bnb-ds distill`` and ``bnb-ds reproduce``."""

from __future__ import annotations

import argparse
from pathlib import Path

from bnb_ds.common.arguments import add_overrides, positive


def add_baseline_commands(commands: argparse._SubParsersAction) -> None:
    """Add them to the parser of ``bnb-ds``."""
    _add_distill(commands)
    _add_reproduce(commands)


def _add_distill(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("distill", help="a training set whose targets an autoregressive teacher writes")
    command.add_argument("teacher", type=Path, help="a run of runs/finetune.py, or an export")
    command.add_argument("--output", type=Path, required=True, help="JSON-lines file, for data.train of a recipe")
    command.add_argument("--task", help="default: what the teacher was fine-tuned for")
    add_overrides(command, "other data than the teacher was fine-tuned on, as in a recipe: data.train=FILE")
    command.add_argument("--num-beams", type=positive, help="default: as the teacher was fine-tuned with")
    command.add_argument(
        "--batch-tokens", type=positive, default=8192, help="source tokens x beams at once (default %(default)s)"
    )
    command.add_argument("--window", type=positive, default=2048, help="examples sorted together (default %(default)s)")
    command.add_argument("--resume", action="store_true", help="go on with an unfinished output")
    command.add_argument("--task-index", type=int, default=0, help="which share of the examples, from 0")
    command.add_argument(
        "--num-tasks", type=positive, default=1, help="shares; each writes OUTPUT.00000-of-00004 and so on"
    )
    command.set_defaults(run=_distill)


def _add_reproduce(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("reproduce", help="the rows of the paper's tables: commands, needs, numbers")
    command.add_argument("--list", action="store_true", required=True, help="print the rows")
    command.add_argument("--table", type=int, choices=(1, 2, 3, 4), help="only that table")
    command.add_argument(
        "--runs", type=Path, default=Path("work/runs"), help="where measured results lie (default %(default)s)"
    )
    command.set_defaults(run=_reproduce)


def _distill(args: argparse.Namespace) -> None:
    from bnb_ds.finetune.distillation import DistillJob, distill

    job = DistillJob(
        args.teacher,
        args.output,
        task_name=args.task,
        overrides=args.overrides,
        num_beams=args.num_beams,
        batch_tokens=args.batch_tokens,
        task_index=args.task_index,
        num_tasks=args.num_tasks,
        window=args.window,
        resume=args.resume,
    )
    print(distill(job))


def _reproduce(args: argparse.Namespace) -> None:
    from bnb_ds.evaluate.reproduce import listing

    print(listing(args.runs, args.table))
