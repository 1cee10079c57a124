"""The command line ``bnb-ds``: parses and calls.

Commands of other packages (``prep``, from data_prep) are found through the entry-point group ``bnb_ds.commands``: each
entry is a function that adds its commands to the parser and stores what to call as ``run``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence

from transformers.utils.logging import disable_progress_bar

from bnb_ds import __version__
from bnb_ds.bench.cli import add_bench
from bnb_ds.commands.baselines import add_baseline_commands
from bnb_ds.commands.check import _add_check
from bnb_ds.commands.curves import add_curves
from bnb_ds.commands.export import _add_export, _add_import_reference
from bnb_ds.commands.generate import _add_reconstruct, add_generate, add_serve
from bnb_ds.commands.tasks import add_task_commands
from bnb_ds.errors import run_reporting_errors


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (2 for a user's error)."""
    parser = _parser()
    args = parser.parse_args(arguments)
    args.command_line = list(sys.argv[1:] if arguments is None else arguments)
    disable_progress_bar()  # of loading and saving weights; commands that take long show their own
    return run_reporting_errors("bnb-ds", lambda: args.run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bnb-ds", description="BERT-NAR-BERT: data, models, generation.")
    parser.add_argument("--version", action="version", version=f"bnb-ds {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for entry in sorted(importlib.metadata.entry_points(group="bnb_ds.commands")):
        entry.load()(commands)
    add_bench(commands)
    _add_check(commands)
    add_curves(commands)
    _add_export(commands)
    _add_import_reference(commands)
    add_generate(commands)
    add_serve(commands)
    _add_reconstruct(commands)
    add_task_commands(commands)
    add_baseline_commands(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
