"""Command-line arguments that several commands share. For a wrong value, argparse prints one line."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """The parser of one command. It adds the arguments only when the command is chosen, so that only the chosen
    command's modules are imported. A flag must be written out: an abbreviation would change its meaning with the next
    flag that begins alike, and is not seen by what reads a command line again. Flags have dashes; one that is written
    with underscores, as DeepSpeed's flags are, means the same.

    Args:
        arguments: ``MODULE:FUNCTION`` that adds the arguments to this parser; None: the caller adds them.

    Attributes:
        intermixed: several values of one positional argument may stand before, between and behind flags.
    """

    intermixed = False

    def __init__(self, *args: Any, arguments: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self._arguments = arguments

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Add the arguments, then parse as argparse does."""
        self.load()
        args = [self._with_dashes(arg) for arg in (sys.argv[1:] if args is None else args)]
        if self.intermixed:
            self.intermixed = False  # argparse parses flags and positional arguments with two calls of this method
            try:
                return self.parse_known_intermixed_args(args, namespace)
            finally:
                self.intermixed = True
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        """The help text; a flag that takes a value and says nothing of its default has none, and the text says so."""
        for action in self._actions:
            takes_value = bool(action.option_strings) and action.nargs != 0 and action.help is not argparse.SUPPRESS
            if takes_value and not action.required and "default" not in (action.help or ""):
                action.help = f"{action.help} (default: none)"
        return super().format_help()

    def load(self) -> None:
        """Import the command's module, and add the arguments. Parsing does so by itself."""
        if self._arguments is not None:
            module, _, function = self._arguments.partition(":")
            self._arguments = None
            getattr(importlib.import_module(module), function)(self)

    def load_all(self) -> None:
        """The same for this command and all below it: for what looks at the whole tree of commands."""
        self.load()
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    command.load_all()

    def _with_dashes(self, argument: str) -> str:
        flag, equals, value = argument.partition("=")
        dashed = flag.replace("_", "-")
        if flag in self._option_string_actions or dashed not in self._option_string_actions:
            return argument
        return f"{dashed}{equals}{value}"


def describe(command: argparse.ArgumentParser, description: str, example: str) -> None:
    """Set the text that ``--help`` shows above the arguments, and one example to show below them."""
    command.description = description
    command.epilog = f"example:\n  {example}"
    command.formatter_class = argparse.RawDescriptionHelpFormatter


def add_overrides(command: argparse.ArgumentParser, help_text: str, metavar: str = "data.KEY=VALUE") -> None:
    """Add ``--set``, which may be repeated. ``overrides`` is the list of its values."""
    command.add_argument("--set", dest="overrides", action="append", default=[], metavar=metavar, help=help_text)


def add_overwrite(command: argparse._ActionsContainer) -> None:
    """Add ``--overwrite``."""
    command.add_argument("--overwrite", action="store_true", help="replace an output that exists (default: refuse)")


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
