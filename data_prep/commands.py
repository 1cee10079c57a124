"""``bnb-ds prep``: corpora, vocabularies and token shards from the command line."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from bnb_ds.errors import ConfigError
from bnb_ds.shards.manifest import SPLITS, Manifest
from data_prep.cli_tools import add_tools
from data_prep.jobs.job import Options
from data_prep.sources.filters import FilteredSource
from data_prep.sources.text import (
    DEFAULT_ID_COLUMN,
    EXTENSIONS,
    TXT_DOCUMENTS,
    TextFormat,
    TextSource,
    find_files,
    read_documents,
)
from data_prep.sources.units import Source
from data_prep.tokenise.engines import ENGINE_NAMES

DEFAULT_VOCAB_SIZE = 8192


def add_commands(prep: argparse.ArgumentParser) -> None:
    """Add the subcommands of ``prep``; each sets ``run`` to a function of the parsed arguments."""
    commands = prep.add_subparsers(dest="prep_command", required=True, metavar="COMMAND")
    _add_text(commands)
    _add_wikipedia(commands)
    _add_pubmed(commands)
    _add_docs(commands)
    _add_vocab(commands)
    _add_merge(commands)
    add_tools(commands)
    commands.add_parser("bench", help="the same as `bnb-ds bench prep`", arguments="data_prep.cli_bench:add_arguments")


def run_text(args: argparse.Namespace) -> None:
    """``prep text``: files of text into token shards."""
    text_format = _text_format(args)
    settings = {
        "command": "prep text",
        "text_column": text_format.text_column,
        "id_column": text_format.id_column,
        "txt_documents": text_format.txt_documents,
    }
    run_source(args, TextSource(find_files(args.input), text_format, settings))


def run_wikipedia(args: argparse.Namespace) -> None:
    """``prep wikipedia``: rows or dumps into token shards."""
    from data_prep.sources import units, wikipedia

    text_format = TextFormat(args.text_column, args.id_column)
    if (args.dataset is None) == (args.input is None):
        raise ConfigError("prep wikipedia needs either --dataset NAME or --input PATH")
    if args.dataset is not None:
        from data_prep.sources.hub_rows import HubSource

        run_source(args, HubSource(args.dataset, args.config, args.split, args.revision, text_format))
        return
    settings = {
        "command": "prep wikipedia",
        "text_column": text_format.text_column,
        "id_column": text_format.id_column,
    }
    files = units.find_files(args.input, wikipedia.KINDS)
    run_source(args, wikipedia.WikipediaSource(files, text_format, settings))


def run_pubmed(args: argparse.Namespace) -> None:
    """``prep pubmed``: MEDLINE/PubMed XML or .jsonl of abstracts into token shards."""
    from data_prep.sources import pubmed

    run_source(args, pubmed.PubmedSource(pubmed.find_files(args.input)))


def run_source(args: argparse.Namespace, source: Source) -> None:
    """Make the shards of a source as the options say, and print one line of what was done."""
    from bnb_ds.data.tokenization import load_tokenizer
    from data_prep.jobs.prepare import prepare
    from data_prep.jobs.progress import Progress

    names = [field.name for field in fields(Options)]
    options = Options(**{name: getattr(args, name) for name in names})
    command = source.settings["command"]
    if args.clean or args.min_characters:
        source = FilteredSource(source, clean=args.clean, min_characters=args.min_characters)
    tokenizer = load_tokenizer(args.tokenizer)
    found = prepare(source, args.output, tokenizer, options, Progress())
    if isinstance(found, str):
        print(f"{command}: task {args.task_index} of {args.num_tasks}: {found}")
    else:
        print(f"{command}: {len(source.files)} files -> {summary(found)} in {args.output}")


def run_merge(args: argparse.Namespace) -> None:
    """``prep merge``: the parts that tasks have made into one shard directory."""
    from data_prep.jobs.merge import merge
    from data_prep.jobs.workspace import Workspace

    with Workspace(args.output) as workspace:
        found = merge(workspace)
    print(f"prep merge: {summary(found)} in {args.output}")


def summary(manifest: Manifest) -> str:
    """Documents, tokens and every kind of skipped record in one line."""
    totals = manifest.totals
    counts = [f"{split} {totals.documents[split]:,} documents {totals.tokens[split]:,} tokens" for split in SPLITS]
    counts += [f"{count:,} {reason} skipped" for reason, count in totals.skipped.items()]
    return f"{', '.join(counts)} ({manifest.dtype})"


def run_docs(args: argparse.Namespace) -> None:
    """``prep docs``: the documentation of this Python installation into one .jsonl."""
    from data_prep.sources.docs import write_docs

    report = write_docs(args.output)
    print(
        f"prep docs: {report.num_documents:,} documents, {report.num_characters:,} characters "
        f"(left out: {report.num_duplicates:,} duplicates, {report.num_unreadable:,} unreadable files) in {args.output}"
    )


def run_vocab(args: argparse.Namespace) -> None:
    """``prep vocab``: train a WordPiece vocabulary."""
    from data_prep.tokenise.vocab import train_vocabulary

    files = find_files(args.input)
    text_format = _text_format(args)
    tokenizer = train_vocabulary(
        read_documents(files, text_format), args.output, vocab_size=args.vocab_size, lowercase=args.uncased
    )
    case = "uncased" if args.uncased else "cased"
    print(f"prep vocab: {len(tokenizer):,} {case} WordPiece tokens from {len(files)} files in {args.output}")


def _add_text(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("text", help=f"{', '.join(EXTENSIONS)} into token shards")
    _add_input(parser)
    add_output_options(parser)
    parser.set_defaults(run=run_text)


def add_output_options(parser: argparse.ArgumentParser, *, drop_duplicates: bool = False) -> None:
    """What every source of shards lets the user choose; the names are those of :class:`Options`."""
    parser.add_argument("--tokenizer", type=Path, required=True, help="BertTokenizerFast directory or vocab.txt")
    parser.add_argument("--output", type=Path, required=True, help="shard directory to make or to go on with")
    defaults = Options()
    for flag, kind, value, text in (
        ("--holdout", float, "FRACTION", "share of the documents held out for evaluation, by hash of their id"),
        ("--tokens-per-shard", int, "N", "size at which a new shard is begun"),
        ("--part-bytes", int, "N", "input on disk that makes a part, the piece of work; follows from the corpus"),
        ("--workers", int, "N", "processes on this machine; the output does not depend on it"),
        ("--task-index", int, "I", "do every N-th part from part I on, for job arrays; then `prep merge`"),
        ("--num-tasks", int, "N", "tasks that share the work"),
    ):
        default = getattr(defaults, flag[2:].replace("-", "_"))
        help_text = text if default is None else f"{text} (default: {default})"
        parser.add_argument(flag, type=kind, default=default, metavar=value, help=help_text)
    parser.add_argument(
        "--engine",
        choices=ENGINE_NAMES,
        default=defaults.engine,
        help="how to tokenise; proven against the tokenizer on the input first (default: the fastest there is)",
    )
    parser.add_argument(
        "--drop-duplicates",
        action=argparse.BooleanOptionalAction,
        default=drop_duplicates,
        help="leave out documents whose text is that of an earlier one",
    )
    parser.add_argument(
        "--clean", action="store_true", help="remove control characters and runs of spaces and blank lines"
    )
    parser.add_argument(
        "--min-characters", type=int, default=0, metavar="N", help="leave out shorter documents (default: %(default)s)"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out records that cannot be read, and list them in the output"
    )


def _add_merge(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("merge", help="join what the tasks of a job array have made, without copying")
    parser.add_argument("output", type=Path, help="the --output of the tasks")
    parser.set_defaults(run=run_merge)


def _add_wikipedia(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "wikipedia", help="Wikipedia (a data set, its files, or an XML dump) into token shards"
    )
    parser.add_argument(
        "--input", type=Path, nargs="+", metavar="PATH", help=".parquet, .arrow, .jsonl or .xml files or directories"
    )
    parser.add_argument("--dataset", metavar="NAME", help="hub data set to stream, for example wikimedia/wikipedia")
    parser.add_argument("--config", metavar="NAME", help="of the data set, for example 20231101.en")
    parser.add_argument("--split", default="train", metavar="NAME", help="of the data set (default: %(default)s)")
    parser.add_argument("--revision", metavar="NAME", help="of the data set, to name it for good")
    _add_columns(parser)
    add_output_options(parser)
    parser.set_defaults(run=run_wikipedia)


def _add_pubmed(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("pubmed", help="MEDLINE/PubMed titles and abstracts into token shards")
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="baseline, then update files: .xml, .xml.gz, .jsonl, or directories of them",
    )
    add_output_options(parser, drop_duplicates=True)
    parser.set_defaults(run=run_pubmed)


def _add_docs(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("docs", help="the documentation that comes with Python and the installed packages")
    parser.add_argument("--output", type=Path, required=True, help=".jsonl file to make (columns id, text, source)")
    parser.set_defaults(run=run_docs)


def _add_vocab(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("vocab", help="train a WordPiece vocabulary, saved as a BertTokenizerFast directory")
    _add_input(parser)
    parser.add_argument("--output", type=Path, required=True, help="tokenizer directory to make; new or empty")
    parser.add_argument(
        "--vocab-size",
        type=int,
        default=DEFAULT_VOCAB_SIZE,
        metavar="N",
        help="most tokens to learn, special tokens included (default: %(default)s)",
    )
    case = parser.add_mutually_exclusive_group()
    case.add_argument("--cased", dest="uncased", action="store_false", help="keep case and accents (default)")
    case.add_argument("--uncased", dest="uncased", action="store_true", help="lowercase and strip accents")
    parser.set_defaults(run=run_vocab, uncased=False)


def _add_input(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help=f"{', '.join(EXTENSIONS)} files, or directories that are searched for them",
    )
    _add_columns(parser)
    parser.add_argument(
        "--txt-documents",
        choices=TXT_DOCUMENTS,
        default=TXT_DOCUMENTS[0],
        help="what separates the documents of a .txt file (default: %(default)s)",
    )


def _add_columns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text-column", default="text", metavar="NAME", help="column of .jsonl and .parquet (default: %(default)s)"
    )
    parser.add_argument(
        "--id-column",
        default=None,
        metavar="NAME",
        help=f"column of document ids (default: {DEFAULT_ID_COLUMN!r} where there is one, else a hash of the text)",
    )


def _text_format(args: argparse.Namespace) -> TextFormat:
    return TextFormat(args.text_column, args.id_column, args.txt_documents)
