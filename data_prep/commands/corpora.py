"""``bnb-ds prep docs`` and ``vocab``: a small corpus, and vocabularies."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.commands.arguments import add_text_input, text_format_of

DEFAULT_VOCAB_SIZE = 8192
VOCABULARY_KINDS = ("wordpiece", "bpe", "unigram")


def add_docs(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``prep docs``."""
    parser.add_argument("--output", type=Path, required=True, help=".jsonl file to make (columns id, text, source)")
    parser.set_defaults(run=run_docs)


def run_docs(args: argparse.Namespace) -> None:
    """Write the documentation of this Python installation into one .jsonl file."""
    from data_prep.sources.docs import write_docs

    report = write_docs(args.output)
    print(
        f"prep docs: {report.num_documents:,} documents, {report.num_characters:,} characters "
        f"(left out: {report.num_duplicates:,} duplicates, {report.num_unreadable:,} unreadable files) in {args.output}"
    )


def add_vocab(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``prep vocab``."""
    add_text_input(parser)
    parser.add_argument("--output", type=Path, required=True, help="tokenizer directory to make; new or empty")
    parser.add_argument(
        "--kind",
        choices=VOCABULARY_KINDS,
        default=VOCABULARY_KINDS[0],
        help="wordpiece (BERT), bpe (byte-level, as RoBERTa) or unigram (as XLM-R) (default: %(default)s)",
    )
    parser.add_argument(
        "--vocab-size",
        type=int,
        default=DEFAULT_VOCAB_SIZE,
        metavar="N",
        help="largest number of tokens, special tokens included (default: %(default)s)",
    )
    case = parser.add_mutually_exclusive_group()
    case.add_argument("--cased", dest="uncased", action="store_false", help="keep case and accents (default)")
    case.add_argument("--uncased", dest="uncased", action="store_true", help="lowercase and strip accents")
    parser.set_defaults(run=run_vocab, uncased=False)


def run_vocab(args: argparse.Namespace) -> None:
    """Train a vocabulary."""
    from data_prep.sources.text import find_files, read_documents
    from data_prep.tokenise.subword_vocab import train_subwords
    from data_prep.tokenise.vocab import train_vocabulary

    files = find_files(args.input)
    documents = read_documents(files, text_format_of(args))
    how = {"vocab_size": args.vocab_size, "lowercase": args.uncased}
    if args.kind == "wordpiece":
        tokenizer = train_vocabulary(documents, args.output, **how)
    else:
        tokenizer = train_subwords(documents, args.output, kind=args.kind, **how)
    case = "uncased" if args.uncased else "cased"
    name = {"wordpiece": "WordPiece", "bpe": "byte-level BPE", "unigram": "Unigram"}[args.kind]
    print(f"prep vocab: {len(tokenizer):,} {case} {name} tokens from {len(files)} files in {args.output}")
