"""The commands ``bnb-ds bench ...``, one for each subject."""

from __future__ import annotations

import argparse
import importlib.metadata

_SUBJECTS = (
    ("ctc", "the fused CTC head: speed and peak memory of forward and backward", "bnb_ds.bench.ctc"),
    ("train", "one optimisation step: unpadded with the fused loss beside padded", "bnb_ds.bench.train"),
    ("engine", "DeepSpeed's share of a training step, against a bare loop", "bnb_ds.bench.deepspeed_share"),
    ("loader", "samples, noise and batches: speed, memory and the first batch", "bnb_ds.bench.data_loader"),
    ("generate", "generation beside the reference's way and autoregressive models", "bnb_ds.bench.generation.command"),
    ("serve", "the service under many clients beside one client alone", "bnb_ds.bench.serve"),
    ("floors", "BLEU of copying the source and of word-for-word translation", "bnb_ds.bench.floors"),
    ("ceilings", "BLEU and ROUGE of references that were tokenised and decoded again", "bnb_ds.bench.ceilings"),
)


def add_bench(commands: argparse._SubParsersAction) -> None:
    """Add ``bench`` and what it can measure."""
    bench = commands.add_parser("bench", help="measure parts of the system side by side with the plain way")
    subjects = bench.add_subparsers(title="subjects", required=True, metavar="SUBJECT")
    for name, help_text, module in _SUBJECTS:
        subjects.add_parser(name, help=help_text, arguments=f"{module}:add_arguments")
    for entry in sorted(importlib.metadata.entry_points(group="bnb_ds.benchmarks")):  # of other packages
        entry.load()(subjects)
