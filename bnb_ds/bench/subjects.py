"""The commands ``bnb-ds bench SUBJECT``, one for each subject."""

from __future__ import annotations

import argparse
import importlib.metadata

_SUBJECTS = (
    ("ctc", "measure speed and peak memory of the fused CTC head", "bnb_ds.bench.ctc"),
    ("dag", "measure speed and peak memory of the fused head of a graph of slots", "bnb_ds.bench.dag"),
    ("beam", "measure the CTC beam search beside greedy decoding and another search", "bnb_ds.bench.prefix_beam"),
    ("train", "measure an optimisation step, unpadded and padded", "bnb_ds.bench.train"),
    ("engine", "measure DeepSpeed's share of a training step", "bnb_ds.bench.deepspeed_share"),
    ("loader", "measure the data loader: speed, memory and time to the first batch", "bnb_ds.bench.data_loader"),
    (
        "generate",
        "measure generation against the reference and autoregressive models",
        "bnb_ds.bench.generation.command",
    ),
    (
        "frontier",
        "measure quality against speed of trained models, with seeds",
        "bnb_ds.bench.frontier.comparing",
    ),
    ("serve", "measure the service under many clients and under one", "bnb_ds.bench.serve"),
    ("floors", "compute BLEU of copying the source and of word-for-word translation", "bnb_ds.bench.floors"),
    ("ceilings", "score references that were tokenised and decoded again", "bnb_ds.bench.ceilings"),
)


def add_bench(commands: argparse._SubParsersAction) -> None:
    """Add the command ``bench`` and its subjects."""
    bench = commands.add_parser(
        "bench",
        help="measure parts of the system against plain implementations",
        description="Measure parts of the system against plain implementations.",
        epilog="`bnb-ds bench SUBJECT --help` describes a subject and shows an example.",
    )
    subjects = bench.add_subparsers(title="subjects", required=True, metavar="SUBJECT")
    for name, help_text, module in _SUBJECTS:
        subjects.add_parser(name, help=help_text, arguments=f"{module}:add_arguments")
    for entry in sorted(importlib.metadata.entry_points(group="bnb_ds.benchmarks")):  # of other packages
        entry.load()(subjects)
