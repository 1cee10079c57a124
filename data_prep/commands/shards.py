"""``bnb-ds prep text``, ``wikipedia``, ``pubmed`` and ``merge``: corpora into token shards."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from bnb_ds.errors import CONTINUE, ConfigError
from bnb_ds.shards.manifest import SPLITS, Manifest
from data_prep.commands.arguments import add_columns, add_output_options, add_text_input, filters_of, text_format_of
from data_prep.jobs.job import Options
from data_prep.sources.filters import FilteredSource
from data_prep.sources.text import TextFormat, TextSource, find_files
from data_prep.sources.units import Source


def add_text(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``prep text``."""
    add_text_input(parser)
    add_output_options(parser)
    parser.set_defaults(run=run_text, next_step=CONTINUE)


def run_text(args: argparse.Namespace) -> None:
    """Make shards of plain files."""
    text_format = text_format_of(args)
    settings = {**_columns("prep text", text_format), "txt_documents": text_format.txt_documents}
    _run_source(args, TextSource(find_files(args.input), text_format, settings))


def add_wikipedia(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``prep wikipedia``."""
    parser.add_argument(
        "--input", type=Path, nargs="+", metavar="PATH", help=".parquet, .arrow, .jsonl or .xml files or directories"
    )
    parser.add_argument("--dataset", metavar="NAME", help="hub data set to stream, for example wikimedia/wikipedia")
    parser.add_argument("--config", metavar="NAME", help="configuration of the data set, for example 20231101.en")
    parser.add_argument("--split", default="train", metavar="NAME", help="split of the data set (default: %(default)s)")
    parser.add_argument("--revision", metavar="NAME", help="revision of the data set, for repeatable runs")
    add_columns(parser)
    add_output_options(parser)
    parser.set_defaults(run=run_wikipedia, next_step=CONTINUE)


def run_wikipedia(args: argparse.Namespace) -> None:
    """Make shards of rows or dumps."""
    from data_prep.sources import units, wikipedia

    text_format = text_format_of(args)
    if (args.dataset is None) == (args.input is None):
        raise ConfigError("prep wikipedia needs either --dataset NAME or --input PATH")
    if args.dataset is not None:
        from data_prep.sources.hub_rows import HubSource

        _run_source(args, HubSource(args.dataset, args.config, args.split, args.revision, text_format))
        return
    files = units.find_files(args.input, wikipedia.KINDS)
    _run_source(args, wikipedia.WikipediaSource(files, text_format, _columns("prep wikipedia", text_format)))


def add_pubmed(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``prep pubmed``."""
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="baseline, then update files: .xml, .xml.gz, .jsonl, or directories of them",
    )
    add_output_options(parser, drop_duplicates=True)
    parser.set_defaults(run=run_pubmed, next_step=CONTINUE)


def run_pubmed(args: argparse.Namespace) -> None:
    """Make shards of MEDLINE/PubMed XML or .jsonl of abstracts."""
    from data_prep.sources import pubmed

    _run_source(args, pubmed.PubmedSource(pubmed.find_files(args.input)))


def add_merge(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``prep merge``."""
    parser.add_argument("output", type=Path, help="the --output of the tasks")
    parser.set_defaults(run=run_merge, next_step=CONTINUE)


def run_merge(args: argparse.Namespace) -> None:
    """Join the parts that tasks have made."""
    from data_prep.jobs.finished import finished
    from data_prep.jobs.merge import merge
    from data_prep.jobs.workspace import Workspace

    if (found := finished(args.output)) is not None:
        print(f"prep merge: already finished: {summary(found)} in {args.output}")
        return
    with Workspace(args.output) as workspace:
        found = merge(workspace)
    print(f"prep merge: {summary(found)} in {args.output}")


def summary(manifest: Manifest) -> str:
    """Documents, tokens and every kind of skipped record in one line."""
    totals = manifest.totals
    counts = [f"{split} {totals.documents[split]:,} documents {totals.tokens[split]:,} tokens" for split in SPLITS]
    counts += [f"{count:,} {reason} skipped" for reason, count in totals.skipped.items()]
    return f"{', '.join(counts)} ({manifest.dtype})"


def _run_source(args: argparse.Namespace, source: Source) -> None:
    """Make the shards of a source as the options say, and print one line about the result."""
    from bnb_ds.data.tokenization import load_tokenizer
    from data_prep.jobs.prepare import prepare
    from data_prep.jobs.progress import Progress

    names = [field.name for field in fields(Options)]
    options = Options(**{name: getattr(args, name) for name in names})
    command = source.settings["command"]
    if (filters := filters_of(args)).are_used:
        source = FilteredSource(source, filters)
    tokenizer = load_tokenizer(args.tokenizer)
    found = prepare(source, args.output, tokenizer, options, Progress())
    if isinstance(found, str):
        print(f"{command}: task {args.task_index} of {args.num_tasks}: {found}")
    else:
        print(f"{command}: {len(source.files)} files -> {summary(found)} in {args.output}")


def _columns(command: str, text_format: TextFormat) -> dict[str, str | bool | None]:
    """The manifest's settings of a source of rows."""
    return {
        "command": command,
        "text_column": text_format.text_column,
        "id_column": text_format.id_column,
        "ignore_ids": text_format.ignore_ids,
    }
