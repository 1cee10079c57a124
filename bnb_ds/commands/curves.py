"""The command ``bnb-ds curves``."""

from __future__ import annotations

import argparse
from pathlib import Path

from bnb_ds.common.arguments import describe
from bnb_ds.common.files import refuse_output
from bnb_ds.errors import ConfigError
from bnb_ds.loggers.plots import plot, table


def add_curves(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds curves``."""
    describe(
        command,
        "Show the first and last value of every curve that runs have logged, and optionally draw curves.",
        "bnb-ds curves work/runs/tiny work/runs/other --png curves.png --tags train/loss",
    )
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output directory of a run")
    command.add_argument("--png", type=Path, metavar="FILE", help="draw the curves of all runs into this new file")
    command.add_argument(
        "--tags", nargs="+", default=["train/loss", "eval/loss"], help="curves to draw (default %(default)s)"
    )
    command.set_defaults(run=_curves)


def _curves(args: argparse.Namespace) -> None:
    from bnb_ds.train.tracking import read_scalars

    if args.png is not None:
        refuse_output(args.png, flag="--png", is_new=True, makes_parents=True)
    curves = {run.name: read_scalars(run / "runs") for run in args.runs}
    if len(curves) < len(args.runs):
        raise ConfigError("two of the runs have the same name: give directories with different names")
    for line in table(curves):
        print(line)
    if args.png is not None:
        plot(curves, args.tags, args.png)
