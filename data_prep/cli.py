"""Where ``bnb-ds`` finds the commands of this package. Imports nothing heavy, because every `bnb-ds` call loads it."""

from __future__ import annotations

import argparse


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add ``prep``."""
    commands.add_parser(
        "prep",
        help="make corpora, vocabularies and token shards",
        description="Make corpora, vocabularies and token shards, and look at shards.",
        epilog="`bnb-ds prep COMMAND --help` describes a command and shows an example.",
        arguments="data_prep.commands.prep:add_commands",
    )


def add_subject(subjects: argparse._SubParsersAction) -> None:
    """Add ``prep`` to the subjects of ``bnb-ds bench``."""
    subjects.add_parser(
        "prep",
        help="time the whole job, or parsing or extraction alone, beside other tools",
        description="Time the whole job beside datasets.map, or parsing or extraction of wikitext alone.",
        epilog="example:\n  bnb-ds bench prep --input corpus.parquet --tokenizer bert-base-cased/ --workers 1 4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        arguments="data_prep.commands.bench:add_arguments",
    )
