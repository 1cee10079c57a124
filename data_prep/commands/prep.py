"""The list of ``bnb-ds prep`` commands: names, descriptions and examples."""

from __future__ import annotations

import argparse
import textwrap
from typing import NamedTuple


class _Command(NamedTuple):
    name: str
    help: str
    description: str
    example: str
    arguments: str  # MODULE:FUNCTION that adds them, imported when the command is chosen


_COMMANDS = (
    _Command(
        "text",
        "tokenise .txt, .jsonl, .csv, .tsv and .parquet files into token shards",
        "Tokenise plain corpora into a shard directory. A run that was interrupted continues where it stopped, and a "
        "finished one is left as it is. The output is the same for any number of workers.",
        "bnb-ds prep text --input corpus/ --tokenizer bert-base-cased/ --output shards/ --workers 8",
        "data_prep.commands.shards:add_text",
    ),
    _Command(
        "wikipedia",
        "tokenise Wikipedia (an XML dump, a data set or its files) into token shards",
        "Tokenise Wikipedia articles into a shard directory. Wikitext of XML dumps becomes plain text first. Rows of "
        "a data set are taken as they are.",
        "bnb-ds prep wikipedia --input enwiki-pages-articles-multistream.xml.bz2 --tokenizer bert-base-cased/ "
        "--output shards/ --workers 8",
        "data_prep.commands.shards:add_wikipedia",
    ),
    _Command(
        "pubmed",
        "tokenise MEDLINE/PubMed titles and abstracts into token shards",
        "Tokenise titles and abstracts into a shard directory. Give the baseline before the update files: later "
        "versions of a record replace earlier ones, and deletions are carried out.",
        "bnb-ds prep pubmed --input baseline/ updatefiles/ --tokenizer bert-base-uncased/ --output shards/",
        "data_prep.commands.shards:add_pubmed",
    ),
    _Command(
        "merge",
        "join the parts that the tasks of a job array made",
        "Join the finished parts of a job array into one shard directory. Files are renamed, not copied.",
        "bnb-ds prep merge shards/",
        "data_prep.commands.shards:add_merge",
    ),
    _Command(
        "docs",
        "collect the documentation of Python and of the installed packages",
        "Write the documentation that every installation has into one .jsonl file: a small corpus of English for "
        "trials without a download.",
        "bnb-ds prep docs --output docs.jsonl",
        "data_prep.commands.corpora:add_docs",
    ),
    _Command(
        "vocab",
        "train a WordPiece, byte-level BPE or SentencePiece vocabulary",
        "Train a vocabulary and save it as a tokenizer directory. One corpus always gives the same WordPiece or "
        "byte-level BPE vocabulary; a Unigram model's scores differ in the fourth digit.",
        "bnb-ds prep vocab --input docs.jsonl --output tokenizer/ --vocab-size 8192 --uncased",
        "data_prep.commands.corpora:add_vocab",
    ),
    _Command(
        "verify",
        "check every byte of a shard directory",
        "Check every file of a shard directory against the hashes in its manifest, and the manifest against its own. "
        "Prints one line for each damage and exits with 1 if there is any.",
        "bnb-ds prep verify shards/",
        "data_prep.commands.looking:add_verify",
    ),
    _Command(
        "show",
        "print documents of a shard directory as text",
        "Decode documents of a shard directory and print them.",
        "bnb-ds prep show shards/ --split heldout --first 10 --num 2",
        "data_prep.commands.looking:add_show",
    ),
    _Command(
        "stats",
        "print the lengths of the documents and the share that padding would waste",
        "Measure one split: lengths of the documents, tokens that cutting to a sequence would lose, and padding.",
        "bnb-ds prep stats shards/ --max-length 512 --png lengths.png",
        "data_prep.commands.looking:add_stats",
    ),
    _Command(
        "bench",
        "the same as `bnb-ds bench prep`",
        "Time the whole job beside datasets.map, or parsing beside pubmed_parser. This is `bnb-ds bench prep`.",
        "bnb-ds prep bench --input corpus.parquet --tokenizer bert-base-cased/ --workers 1 4",
        "data_prep.commands.bench:add_arguments",
    ),
)


def add_commands(prep: argparse.ArgumentParser) -> None:
    """Add the subcommands of ``prep``; each sets ``run`` to a function of the parsed arguments."""
    commands = prep.add_subparsers(dest="prep_command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        commands.add_parser(
            command.name,
            help=command.help,
            description=textwrap.fill(command.description, 80),
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,  # an example is copied: no line breaks in it
            arguments=command.arguments,
        )
