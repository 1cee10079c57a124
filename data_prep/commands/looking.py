"""``bnb-ds prep verify``, ``show`` and ``stats``: looking at shard directories."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bnb_ds.common.files import refuse_output
from bnb_ds.errors import ConfigError
from bnb_ds.shards.manifest import SPLITS
from bnb_ds.shards.reader import TokenShards, read_manifest

DAMAGED = 1  # exit code


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``prep verify``."""
    parser.add_argument("directory", type=Path, help="shard directory")
    parser.set_defaults(run=run_verify)


def run_verify(args: argparse.Namespace) -> int:
    """Print one line for each damage; exit code 1 if there is any."""
    from data_prep.tools.verify import find_damage, unchecked

    damage = find_damage(args.directory)
    for line in damage:
        print(f"prep verify: {line}", file=sys.stderr)
    if damage:
        return DAMAGED
    manifest = read_manifest(args.directory)
    documents, tokens = manifest.totals.documents, manifest.totals.tokens
    counts = [f"{split} {documents[split]:,} documents {tokens[split]:,} tokens" for split in SPLITS]
    print(f"prep verify: {', '.join(counts)}: every hash, offset, id and the tokenizer are right in {args.directory}")
    if (gap := unchecked(manifest)) is not None:
        print(f"prep verify: {gap}")
    return 0


def add_show(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``prep show``."""
    parser.add_argument("directory", type=Path, help="shard directory")
    parser.add_argument("--split", choices=SPLITS, default=SPLITS[0], help="which documents (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="I", help="first document (default: %(default)s)")
    parser.add_argument("--num", type=int, default=3, metavar="N", help="number of documents (default: %(default)s)")
    parser.add_argument(
        "--max-tokens", type=int, default=200, metavar="N", help="tokens shown of each (default: %(default)s)"
    )
    parser.set_defaults(run=run_show)


def run_show(args: argparse.Namespace) -> None:
    """Print documents as text."""
    from bnb_ds.data.tokenization import load_tokenizer

    shards = TokenShards(args.directory, args.split)
    if not 0 <= args.first < len(shards):
        raise ConfigError(f"--first must be at least 0 and below the {len(shards)} documents of {args.split}")
    tokenizer = load_tokenizer(shards.tokenizer_dir)
    for index in range(args.first, min(args.first + args.num, len(shards))):
        token_ids = shards.document(index)
        shown = min(len(token_ids), args.max_tokens)
        more = f", the first {shown}" if shown < len(token_ids) else ""
        print(f"--- {args.split} {index}: {len(token_ids):,} tokens{more}")
        print(tokenizer.decode(token_ids[:shown]))


def add_stats(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``prep stats``."""
    parser.add_argument("directory", type=Path, help="shard directory")
    parser.add_argument("--split", choices=SPLITS, default=SPLITS[0], help="which documents (default: %(default)s)")
    parser.add_argument(
        "--max-length", type=int, default=512, metavar="N", help="tokens of a sequence (default: %(default)s)"
    )
    parser.add_argument("--png", type=Path, metavar="FILE", help="also draw the lengths into this file")
    parser.set_defaults(run=run_stats)


def run_stats(args: argparse.Namespace) -> None:
    """Print the measures of a split, and draw them if asked to."""
    from data_prep.tools.stats import corpus_stats, plot

    if args.png is not None:
        refuse_output(args.png, flag="--png", is_new=True, makes_parents=True)
    found = corpus_stats(args.directory, args.split, args.max_length)
    print("\n".join(found.lines()))
    if args.png is not None:
        plot(found, args.png, f"{args.directory.name} {args.split}")
        print(f"prep stats: drawn in {args.png}")
