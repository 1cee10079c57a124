"""``bnb-ds prep``: corpora, vocabularies and token shards from the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from bnb_ds.shards import DEFAULT_TOKENS_PER_SHARD, SPLITS
from data_prep.documents import DEFAULT_HOLDOUT
from data_prep.text import DEFAULT_ID_COLUMN, EXTENSIONS, TXT_DOCUMENTS, TextFormat, find_files, read_documents

DEFAULT_VOCAB_SIZE = 8192


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Add ``prep`` with its subcommands; each sets ``run`` to a function of the parsed arguments."""
    prep = subparsers.add_parser("prep", help="make corpora, vocabularies and token shards")
    commands = prep.add_subparsers(dest="prep_command", required=True, metavar="COMMAND")
    _add_text(commands)
    _add_docs(commands)
    _add_vocab(commands)


def run_text(args: argparse.Namespace) -> None:
    """``prep text``: files of text into token shards."""
    from bnb_ds.tokenization import load_tokenizer
    from data_prep.build import build_shards

    files = find_files(args.input)
    tokenizer = load_tokenizer(args.tokenizer)
    text_format = _text_format(args)
    manifest = build_shards(
        read_documents(files, text_format),
        args.output,
        tokenizer,
        sources=[file.manifest_entry() for file in files],
        holdout=args.holdout,
        tokens_per_shard=args.tokens_per_shard,
        settings={
            "command": "prep text",
            "text_column": text_format.text_column,
            "id_column": text_format.id_column,
            "txt_documents": text_format.txt_documents,
        },
    )
    totals = manifest.totals
    counts = [f"{split} {totals.documents[split]:,} documents {totals.tokens[split]:,} tokens" for split in SPLITS]
    counts += [f"{count:,} {reason} skipped" for reason, count in totals.skipped.items()]
    print(f"prep text: {len(files)} files -> {', '.join(counts)} ({manifest.dtype}) in {args.output}")


def run_docs(args: argparse.Namespace) -> None:
    """``prep docs``: the documentation of this Python installation into one .jsonl."""
    from data_prep.docs import write_docs

    report = write_docs(args.output)
    print(
        f"prep docs: {report.num_documents:,} documents, {report.num_characters:,} characters "
        f"(left out: {report.num_duplicates:,} duplicates, {report.num_unreadable:,} unreadable files) in {args.output}"
    )


def run_vocab(args: argparse.Namespace) -> None:
    """``prep vocab``: train a WordPiece vocabulary."""
    from data_prep.vocab import train_vocabulary

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
    parser.add_argument("--tokenizer", type=Path, required=True, help="BertTokenizerFast directory or vocab.txt")
    parser.add_argument("--output", type=Path, required=True, help="shard directory to make; new or empty")
    parser.add_argument(
        "--holdout",
        type=float,
        default=DEFAULT_HOLDOUT,
        metavar="FRACTION",
        help="share of the documents held out for evaluation, by hash of their id (default: %(default)s)",
    )
    parser.add_argument(
        "--tokens-per-shard",
        type=int,
        default=DEFAULT_TOKENS_PER_SHARD,
        metavar="N",
        help="size at which a new shard is begun (default: %(default)s)",
    )
    parser.set_defaults(run=run_text)


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
    parser.add_argument(
        "--text-column", default="text", metavar="NAME", help="column of .jsonl and .parquet (default: %(default)s)"
    )
    parser.add_argument(
        "--id-column",
        default=None,
        metavar="NAME",
        help=f"column of document ids (default: {DEFAULT_ID_COLUMN!r} where there is one, else a hash of the text)",
    )
    parser.add_argument(
        "--txt-documents",
        choices=TXT_DOCUMENTS,
        default=TXT_DOCUMENTS[0],
        help="what separates the documents of a .txt file (default: %(default)s)",
    )


def _text_format(args: argparse.Namespace) -> TextFormat:
    return TextFormat(args.text_column, args.id_column, args.txt_documents)
