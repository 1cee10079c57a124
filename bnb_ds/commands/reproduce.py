"""The command ``bnb-ds reproduce``."""

from __future__ import annotations

import argparse
from pathlib import Path

from bnb_ds.common.arguments import add_overrides, describe, positive
from bnb_ds.errors import ConfigError


def add_reproduce(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds reproduce``."""
    describe(
        command,
        "Print the paper's tables with the numbers that were published and measured, list their rows, or run one row.",
        "bnb-ds reproduce --table 2",
    )
    command.add_argument("--list", action="store_true", help="print the command, the needs and the numbers of each row")
    command.add_argument(
        "--table", type=int, choices=(1, 2, 3, 4), help="print this table; with --list, list only its rows"
    )
    command.add_argument("--latex", action="store_true", help="print the table as LaTeX (default: Markdown)")
    command.add_argument("--run", dest="row", metavar="ROW", help="train and score this row; --list names them")
    command.add_argument(
        "--time",
        metavar="TASK",
        help="measure the speed of all rows of a task that were run, in one process, and file it for the tables",
    )
    command.add_argument(
        "--num-gpus", type=positive, metavar="NUMBER", help="with --run: ranks on this host (default 1)"
    )
    command.add_argument(
        "--deepspeed-config", metavar="JSON", help="with --run: another DeepSpeed JSON (default: that of the row)"
    )
    add_overrides(command, "with --run: replace a value of the recipe, for example epochs=1; repeatable", "KEY=VALUE")
    command.add_argument(
        "--runs",
        type=Path,
        default=Path("work/runs"),
        help="directory of the runs with measured results (default %(default)s)",
    )
    command.set_defaults(run=_reproduce)


#: what the command does -> the options that it reads; each does one thing, and --list alone takes another one's option
_OPTIONS = {
    "--run": ("--num-gpus", "--deepspeed-config", "--set"),
    "--time": (),
    "--list": ("--table",),
    "--table": ("--latex",),
}


def _refuse_unread(args: argparse.Namespace) -> None:
    """Refuse an option that the chosen action would not read: a user would take its result for another one."""
    values = {"--run": args.row, "--time": args.time, "--list": args.list or None, "--table": args.table}
    values |= {"--latex": args.latex or None, "--num-gpus": args.num_gpus, "--deepspeed-config": args.deepspeed_config}
    values |= {"--set": args.overrides or None}
    given = [flag for flag, value in values.items() if value is not None]
    action = next((flag for flag in _OPTIONS if flag in given), None)
    if action is None:
        raise ConfigError("bnb-ds reproduce: give --table NUMBER, --list, --run ROW or --time TASK")
    unread = [flag for flag in given if flag != action and flag not in _OPTIONS[action]]
    if unread:
        raise ConfigError(f"{unread[0]} with {action}: has no effect there; leave one of them out")


def _reproduce(args: argparse.Namespace) -> None:
    _refuse_unread(args)
    # Each branch imports its own: a list needs no model code.
    if args.row is not None:
        _run_row(args)
    elif args.time is not None:
        _time(args)
    elif args.list:
        from bnb_ds.reproduce.listing import listing

        print(listing(args.runs, args.table))
    else:
        from bnb_ds.reproduce.paper_tables import table

        print(table(args.table, args.runs, latex=args.latex))


def _run_row(args: argparse.Namespace) -> None:
    from bnb_ds.reproduce.paper_rows import find_row
    from bnb_ds.reproduce.results_of_rows import measured
    from bnb_ds.reproduce.run_row import run_row

    row = find_row(args.row)
    evaluation = run_row(
        row, args.runs, num_gpus=args.num_gpus or 1, ds_config=args.deepspeed_config, overrides=args.overrides
    )
    scores = ", ".join(f"{name} {value:.4g}" for name, value in evaluation.scores.items() if value is not None)
    print(f"{row.name}: {scores}; {evaluation.directory}")
    found = measured(row, args.runs).get(row.split)
    if found is not None and found.differs:
        print(f"  marked in the tables, because it is not as the row says: {'; '.join(found.differs)}")


def _time(args: argparse.Namespace) -> None:
    import torch

    from bnb_ds.bench.frontier import pareto
    from bnb_ds.bench.frontier.contestants import Contestant
    from bnb_ds.bench.frontier.measuring import STATE_FILE, Setting, measure
    from bnb_ds.common.files import disk_errors
    from bnb_ds.reproduce.paper_rows import WHOLE_BATCH
    from bnb_ds.reproduce.speed_of_rows import directory_of, timed_rows

    found = timed_rows(args.time, args.runs)
    contestants = [Contestant(row.system, (args.runs / row.output_dir,)) for row in found]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = Setting(found[0].split, batch_sizes=(1, WHOLE_BATCH), device=device, threads=torch.get_num_threads())
    directory = directory_of(args.time, args.runs)
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    comparison = measure(contestants, setting, directory / STATE_FILE)
    print(pareto.write(directory, comparison, [comparison.main_score], setting))
