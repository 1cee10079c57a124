"""The command ``bnb-ds completion``."""

from __future__ import annotations

import argparse
from pathlib import Path

from bnb_ds.common.arguments import CommandParser, describe

#: arguments that name files and have no type `Path`, because they may also be ``-`` or a name
_NAMES_OF_FILES = ("recipe", "recipes", "input", "output", "deepspeed_config")


def add_completion(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds completion``."""
    describe(
        command,
        "Print a script with which a shell completes commands, flags, their values and files.\n"
        "bash: save it, and source it in ~/.bashrc. zsh: save it as _bnb-ds in a directory of $fpath.",
        "bnb-ds completion bash",
    )
    command.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="shell that will read the script")
    command.set_defaults(run=_completion)


def _completion(args: argparse.Namespace) -> None:
    import shtab

    args.parser.load_all()
    _complete_files(args.parser, shtab.FILE)
    print(shtab.complete(args.parser, args.shell))


def _complete_files(parser: CommandParser, how: dict[str, str]) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command, how)
        elif action.type is Path or action.dest in _NAMES_OF_FILES:
            action.complete = how  # type: ignore[attr-defined]
