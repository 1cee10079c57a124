"""Arguments that several ``prep`` commands have."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from data_prep.jobs.job import EXECUTORS, Options
from data_prep.sources.filters import CONTAMINATION_WORDS, NGRAM_WORDS, Filters
from data_prep.sources.text import DEFAULT_ID_COLUMN, EXTENSIONS, TXT_DOCUMENTS, TextFormat
from data_prep.tokenise.names import ENGINE_NAMES


def add_text_input(parser: argparse.ArgumentParser) -> None:
    """Add ``--input`` and how documents lie in plain files."""
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help=f"{', '.join(EXTENSIONS)} files, or directories that are searched for them",
    )
    add_columns(parser)
    parser.add_argument(
        "--txt-documents",
        choices=TXT_DOCUMENTS,
        default=TXT_DOCUMENTS[0],
        help="what separates the documents of a .txt file (default: %(default)s)",
    )


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Add the columns of rows."""
    parser.add_argument(
        "--text-column",
        default="text",
        metavar="NAME",
        help="column of .jsonl, .csv, .tsv and .parquet (default: %(default)s)",
    )
    ids = parser.add_mutually_exclusive_group()
    ids.add_argument(
        "--id-column",
        default=None,
        metavar="NAME",
        help=f"column of document ids (default: {DEFAULT_ID_COLUMN!r} if there is one, else a hash of the text)",
    )
    ids.add_argument(
        "--ignore-ids",
        action="store_true",
        help=f"use a hash of the text as id even if there is a column {DEFAULT_ID_COLUMN!r}",
    )


def text_format_of(args: argparse.Namespace) -> TextFormat:
    """The format that the arguments describe; only :func:`add_text_input` has ``txt_documents``."""
    separator = getattr(args, "txt_documents", TXT_DOCUMENTS[0])
    return TextFormat(args.text_column, args.id_column, separator, args.ignore_ids)


def add_output_options(parser: argparse.ArgumentParser, *, drop_duplicates: bool = False) -> None:
    """Add what every source of shards lets the user choose; the names are those of :class:`Options`."""
    parser.add_argument(
        "--tokenizer",
        type=Path,
        required=True,
        help="directory of a fast tokenizer (WordPiece, byte-level BPE, SentencePiece), or a BERT vocab.txt",
    )
    parser.add_argument("--output", type=Path, required=True, help="shard directory to make or to continue")
    defaults = Options()
    for flag, kind, value, text in (
        ("--holdout", float, "FRACTION", "share of the documents held out for evaluation, chosen by a hash of the id"),
        ("--tokens-per-shard", int, "N", "size at which a new shard is begun"),
        ("--part-bytes", int, "N", "input bytes of one part, the unit of work; follows from the corpus by default"),
        ("--workers", int, "N", "processes on this machine; the output is the same for any number"),
        ("--task-index", int, "I", "for job arrays: do every N-th part from part I on; `prep merge` joins them"),
        ("--num-tasks", int, "N", "tasks that share the work"),
    ):
        default = getattr(defaults, flag[2:].replace("-", "_"))
        help_text = text if default is None else f"{text} (default: {default})"
        parser.add_argument(flag, type=kind, default=default, metavar=value, help=help_text)
    parser.add_argument(
        "--executor",
        choices=EXECUTORS,
        default=defaults.executor,
        help="where the parts are made: in processes of this machine, or on a Dask cluster that shares a file system "
        "with it (default: %(default)s)",
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="scheduler of the Dask cluster, for example tcp://host:8786"
    )
    parser.add_argument(
        "--engine",
        choices=ENGINE_NAMES,
        default=defaults.engine,
        help="tokenisation program; each is compared with the tokenizer before use (default: the fastest installed)",
    )
    parser.add_argument(
        "--drop-duplicates",
        action=argparse.BooleanOptionalAction,
        default=drop_duplicates,
        help="leave out documents whose text equals that of an earlier one",
    )
    parser.add_argument(
        "--drop-near-duplicates",
        action="store_true",
        help="leave out documents that share most of their runs of five words with an earlier one (MinHash)",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out records that cannot be read, and list them in the output"
    )
    _add_filters(parser.add_argument_group("filters", "all off by default; what they leave out is counted"))


def filters_of(args: argparse.Namespace) -> Filters:
    """The filters that the arguments describe."""
    values = {field.name: getattr(args, field.name) for field in fields(Filters)}
    return Filters(**{**values, **{name: tuple(values[name]) for name in ("language", "decontaminate")}})


def _add_filters(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--clean", action="store_true", help="remove control characters and runs of spaces and blank lines"
    )
    group.add_argument(
        "--mask-pii", action="store_true", help="replace e-mail addresses and telephone numbers by [EMAIL] and [PHONE]"
    )
    for flag, text in (
        ("--min-characters", "leave out documents with fewer characters"),
        ("--max-characters", "leave out documents with more characters"),
    ):
        group.add_argument(flag, type=int, metavar="N", help=text)
    for flag, text in (
        ("--max-symbols", "characters other than letters, digits and white space"),
        ("--max-digits", "digits"),
        ("--max-repeated-lines", "lines that repeat an earlier one"),
        ("--max-repeated-ngrams", f"runs of {NGRAM_WORDS} words that repeat an earlier one"),
    ):
        group.add_argument(flag, type=float, metavar="SHARE", help=f"leave out documents with a larger share of {text}")
    group.add_argument(
        "--language",
        nargs="+",
        default=[],
        metavar="CODE",
        help="leave out documents in other languages than these, for example en (ISO 639)",
    )
    group.add_argument(
        "--decontaminate",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help=f"leave out documents that share {CONTAMINATION_WORDS} words in a row with a document of these "
        f"{', '.join(EXTENSIONS)} files (column 'text')",
    )
