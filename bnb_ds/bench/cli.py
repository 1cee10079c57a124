"""The commands ``bnb-ds bench ...``: each subject adds its own."""

from __future__ import annotations

import argparse
import importlib.metadata

from bnb_ds.bench import ctc, engine, floors, loader, serve, train
from bnb_ds.bench.generation import command as generate_cli


def add_bench(commands: argparse._SubParsersAction) -> None:
    """Add ``bench`` and what it can measure."""
    bench = commands.add_parser("bench", help="measure parts of the system side by side with the plain way")
    subjects = bench.add_subparsers(title="subjects", required=True, metavar="SUBJECT")
    for subject in (ctc, train, engine, loader, generate_cli, serve, floors):
        subject.add_command(subjects)
    for entry in sorted(importlib.metadata.entry_points(group="bnb_ds.benchmarks")):  # of other packages
        entry.load()(subjects)
