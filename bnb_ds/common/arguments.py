"""Command-line arguments that several commands have; what does not fit a type is argparse's one-line error."""

from __future__ import annotations

import argparse


def add_overrides(command: argparse.ArgumentParser, help_text: str, metavar: str = "data.KEY=VALUE") -> None:
    """Add ``--set``, which may be repeated; ``overrides`` is the list of what is given."""
    command.add_argument("--set", dest="overrides", action="append", default=[], metavar=metavar, help=help_text)


def natural(text: str) -> int:
    """A whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"a whole number of at least 0 is required, not {text}")
    return value


def positive(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"a positive whole number is required, not {text}")
    return value
