"""The commands ``bnb-ds bench ...``."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from bnb_ds import distributed
from bnb_ds.bench import engine as engine_bench
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
    _add_engine(subjects)


def _add_engine(subjects: argparse._SubParsersAction) -> None:
    engine = subjects.add_parser("engine", help="DeepSpeed's share of a training step, against a bare loop")
    engine.add_argument("--size", choices=("tiny", "base", "large"), default="base", help="default %(default)s")
    engine.add_argument("--stage", type=int, choices=(0, 1, 2, 3), action="append", help="ZeRO (default: 0 and 1)")
    engine.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast in both ways")
    engine.add_argument("--micro-steps", type=_positive, default=2, help="of a step (default %(default)s)")
    engine.add_argument("--sequences", type=_positive, default=4, help="of a micro step (default %(default)s)")
    engine.add_argument("--tokens", type=_positive, default=128, help="of a sequence (default %(default)s)")
    engine.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default %(default)s")
    engine.add_argument("--repeats", type=_positive, default=5, help="of each median (default %(default)s)")
    engine.add_argument("--threads", type=_positive, default=2, help="on the CPU (default %(default)s)")
    engine.set_defaults(run=_engine)


def _engine(args: argparse.Namespace) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here: use --device cpu")
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    device = distributed.init()
    torch.set_num_threads(args.threads)
    work = engine_bench.Work(args.micro_steps, args.sequences, args.tokens)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {args.threads} threads"
    print(f"{name}, {args.size}, {args.precision}, {work.tokens_per_step:,} tokens a step, torch {torch.__version__}")
    results = [
        engine_bench.measure(args.size, stage, args.precision, work, device, args.repeats)
        for stage in args.stage or (0, 1)
    ]
    print(engine_bench.table(results))
    distributed.shutdown()


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
