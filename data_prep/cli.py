"""Where ``bnb-ds`` finds the commands of this package. It imports nothing heavy: `bnb-ds --help` comes through here."""

from __future__ import annotations

import argparse


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add ``prep``."""
    commands.add_parser(
        "prep", help="make corpora, vocabularies and token shards", arguments="data_prep.commands:add_commands"
    )


def add_subject(subjects: argparse._SubParsersAction) -> None:
    """Add ``prep`` to the subjects of ``bnb-ds bench``."""
    subjects.add_parser(
        "prep",
        help="time the whole job, or parsing or extraction alone, beside other tools",
        arguments="data_prep.cli_bench:add_arguments",
    )
