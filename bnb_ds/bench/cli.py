"""The commands ``bnb-ds bench ...``."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
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
    _add_loader(subjects)


def _add_loader(subjects: argparse._SubParsersAction) -> None:
    command = subjects.add_parser("loader", help="samples, noise and batches: speed, memory and the first batch")
    command.add_argument(
        "--documents", type=_positive, default=10_000_000, help="of the large corpus (default %(default)s)"
    )
    command.add_argument("--repeats", type=_positive, default=5, help="of each median (default %(default)s)")
    command.add_argument("--directory", type=Path, help="for made-up shards, removed in the end (default: temporary)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    command.set_defaults(run=_loader)


def _loader(args: argparse.Namespace) -> None:
    from bnb_ds.bench import loader

    _refuse_missing_parent(args.json)
    if args.directory is not None and not args.directory.is_dir():
        raise ConfigError(f"--directory {args.directory}: no such directory: make it first")
    torch.set_num_threads(1)
    setting = {"documents": args.documents, "repeats": args.repeats, **_versions(), "numpy": np.__version__}
    print(", ".join(f"{name} {value}" for name, value in setting.items()), flush=True)
    figures = loader.measure(args.documents, args.repeats, args.directory)
    print(loader.table(figures))
    if args.json is not None:
        write_atomic(args.json, json.dumps({**setting, **figures}, indent=2) + "\n")


def _ctc(args: argparse.Namespace) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here: use --device cpu")
    _refuse_missing_parent(args.json)
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    setting = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} threads",
        "dtype": args.dtype,
        "kl_weight": args.kl_weight,
        "repeats": args.repeats,
        **_versions(),
    }
    print(", ".join(f"{name} {value}" for name, value in setting.items()), flush=True)
    shapes = args.shape or DEFAULT_SHAPES
    results = [measure(shape, device, DTYPES[args.dtype], args.kl_weight, args.repeats) for shape in shapes]
    print(table(results))
    if args.json is not None:
        figures: dict[str, Any] = {**setting, "results": results}
        write_atomic(args.json, json.dumps(figures, indent=2) + "\n")


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "python": platform.python_version()}


def _refuse_missing_parent(file: Path | None) -> None:
    if file is not None and not file.parent.is_dir():
        raise ConfigError(f"--json {file}: there is no directory {file.parent}: make it first")


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"a positive whole number is required, not {text}")
    return value
