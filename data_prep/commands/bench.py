"""``bnb-ds prep bench``, which is also ``bnb-ds bench prep``."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from bnb_ds.errors import ConfigError


def add_arguments(bench: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds bench prep``."""
    bench.add_argument("--input", type=Path, nargs="+", metavar="PATH", help=".parquet files of text: the whole job")
    bench.add_argument("--parse", type=Path, nargs="+", metavar="FILE", help="PubMed XML: parsing alone")
    bench.add_argument("--extract", type=Path, nargs="+", metavar="FILE", help="MediaWiki dumps: extraction alone")
    bench.add_argument(
        "--reference",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="parquet with columns title and text: what --extract should find (default: measure speed alone)",
    )
    bench.add_argument(
        "--without-lists", action="store_true", help="--extract: take lines of lists out of the source first"
    )
    bench.add_argument("--tokenizer", type=Path, help="tokenizer directory")
    bench.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="processes; several are run in turn (default: 1)",
    )
    bench.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of each (default: %(default)s)")
    bench.add_argument(
        "--contenders", nargs="+", metavar="NAME", help="ratios are against the first (default: all that are installed)"
    )
    bench.set_defaults(run=run_bench)


def run_bench(args: argparse.Namespace) -> None:
    """Print a table in Markdown: of the whole job, of parsing alone, or of wikitext to text alone."""
    if [args.parse, args.input, args.extract].count(None) != 2:
        raise ConfigError("the benchmark of prep needs one of --input PATH, --parse FILE and --extract FILE")
    if args.reference is not None and args.extract is None:
        raise ConfigError("--reference needs --extract FILE")
    if args.extract is not None:
        from data_prep.tools.bench_extract import bench_extract

        lines = bench_extract(
            args.extract,
            args.reference,
            rounds=args.rounds,
            contenders=args.contenders,
            without_lists=args.without_lists,
        )
    elif args.parse is not None:
        from data_prep.tools.bench_parse import bench_parse

        lines = bench_parse(args.parse, args.rounds)
    else:
        from data_prep.tools.bench import CONTENDERS, bench

        if args.tokenizer is None:
            raise ConfigError("--input needs --tokenizer DIRECTORY")
        installed = [name for name in CONTENDERS if name != "prep nanotoken" or find_spec("nanotoken") is not None]
        contenders = args.contenders or installed
        lines = bench(args.input, args.tokenizer, workers=args.workers, rounds=args.rounds, contenders=contenders)
    for line in lines:
        print(line, flush=True)
