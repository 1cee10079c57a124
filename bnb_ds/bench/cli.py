"""The commands ``bnb-ds bench ...``."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import torch

from bnb_ds.bench.ctc import DEFAULT_SHAPES, DTYPES, Shape, measure, table
from bnb_ds.errors import ConfigError
from bnb_ds.files import write_atomic


def add_bench(commands: argparse._SubParsersAction) -> None:
    """Add ``bench`` and what it can measure."""
    bench = commands.add_parser("bench", help="measure parts of the system side by side with the plain way")
    subjects = bench.add_subparsers(title="subjects", required=True, metavar="SUBJECT")
    ctc = subjects.add_parser("ctc", help="the fused CTC head: speed and peak memory of forward and backward")
    ctc.add_argument(
        "--shape",
        type=Shape.parse,
        action="append",
        metavar="B,T,S,V,H[,ragged]",
        help="sequences, positions, target tokens, vocabulary, hidden size; may be repeated (default: four shapes)",
    )
    ctc.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default %(default)s")
    ctc.add_argument(
        "--dtype", choices=DTYPES, default="fp32", help="of hidden states and weight (default %(default)s)"
    )
    ctc.add_argument("--repeats", type=_positive, default=5, help="of each median (default %(default)s)")
    ctc.add_argument("--threads", type=_positive, default=2, help="on the CPU (default %(default)s)")
    ctc.add_argument("--kl-weight", type=float, default=0.1, help="of the smoothing term (default %(default)s)")
    ctc.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    ctc.set_defaults(run=_ctc)
    for entry in sorted(importlib.metadata.entry_points(group="bnb_ds.benchmarks")):  # of other packages
        entry.load()(subjects)


def _ctc(args: argparse.Namespace) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here: use --device cpu")
    if args.json is not None and not args.json.parent.is_dir():
        raise ConfigError(f"--json {args.json}: there is no directory {args.json.parent}: make it first")
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    setting = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} threads",
        "dtype": args.dtype,
        "kl_weight": args.kl_weight,
        "repeats": args.repeats,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(", ".join(f"{name} {value}" for name, value in setting.items()), flush=True)
    shapes = args.shape or DEFAULT_SHAPES
    results = [measure(shape, device, DTYPES[args.dtype], args.kl_weight, args.repeats) for shape in shapes]
    print(table(results))
    if args.json is not None:
        figures: dict[str, Any] = {**setting, "results": results}
        write_atomic(args.json, json.dumps(figures, indent=2) + "\n")


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"a positive whole number is required, not {text}")
    return value
