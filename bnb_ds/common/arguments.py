"""Command-line arguments that several commands have; what does not fit a type is argparse's one-line error."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """A command that adds its arguments when it is chosen, so that the imports of all others cost nothing.

    Args:
        arguments: ``MODULE:FUNCTION`` that adds the arguments to this parser; None: the caller adds them.
    """

    def __init__(self, *args: Any, arguments: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._arguments = arguments

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse, once the arguments are there."""
        if self._arguments is not None:
            module, _, function = self._arguments.partition(":")
            self._arguments = None
            getattr(importlib.import_module(module), function)(self)
        return super().parse_known_args(args, namespace)


def describe(command: argparse.ArgumentParser, description: str, example: str) -> None:
    """Set the text that ``--help`` shows above the arguments, and one example to show below them."""
    command.description = description
    command.epilog = f"example:\n  {example}"
    command.formatter_class = argparse.RawDescriptionHelpFormatter


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
