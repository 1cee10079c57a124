"""The commands ``bnb-ds bench ...``."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bnb_ds import distributed
from bnb_ds.bench import ctc, train
from bnb_ds.bench import engine as engine_bench
from bnb_ds.errors import ConfigError
from bnb_ds.files import write_atomic


def add_bench(commands: argparse._SubParsersAction) -> None:
    """Add ``bench`` and what it can measure."""
    bench = commands.add_parser("bench", help="measure parts of the system side by side with the plain way")
    subjects = bench.add_subparsers(title="subjects", required=True, metavar="SUBJECT")
    _add_ctc(subjects)
    _add_train(subjects)
    _add_engine(subjects)
    _add_loader(subjects)
    _add_floors(subjects)
    for entry in sorted(importlib.metadata.entry_points(group="bnb_ds.benchmarks")):  # of other packages
        entry.load()(subjects)


def _add_ctc(subjects: argparse._SubParsersAction) -> None:
    command = subjects.add_parser("ctc", help="the fused CTC head: speed and peak memory of forward and backward")
    command.add_argument(
        "--shape",
        type=ctc.Shape.parse,
        action="append",
        metavar="B,T,S,V,H[,ragged]",
        help="sequences, positions, target tokens, vocabulary, hidden size; may be repeated (default: four shapes)",
    )
    _add_common(command, dtypes=ctc.DTYPES, repeats=5)
    command.set_defaults(run=_ctc)


def _add_train(subjects: argparse._SubParsersAction) -> None:
    command = subjects.add_parser("train", help="one optimisation step: unpadded with the fused loss beside padded")
    command.add_argument("--shards", type=Path, required=True, help="a shard directory; its lengths are those measured")
    command.add_argument("--size", choices=train.SIZES, default="mid", help="of the model (default %(default)s)")
    command.add_argument("--batch-size", type=_positive, default=8, help="sequences of a step (default %(default)s)")
    command.add_argument("--max-length", type=_positive, default=512, help="tokens, cut there (default %(default)s)")
    command.add_argument(
        "--target-tokens", type=_positive, help="tokens of a target, the beginning of its source (default: all)"
    )
    command.add_argument(
        "--decoder-ratio", type=float, default=1.0, help="our decoder slots per source token (default %(default)s)"
    )
    _add_common(command, dtypes=("fp32", "bf16"), repeats=6)
    command.set_defaults(run=_train)


def _add_common(command: argparse.ArgumentParser, *, dtypes: Iterable[str], repeats: int) -> None:
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default %(default)s")
    command.add_argument("--dtype", choices=dtypes, default="fp32", help="of matrix products (default %(default)s)")
    command.add_argument("--repeats", type=_positive, default=repeats, help="rounds (default %(default)s)")
    command.add_argument("--threads", type=_positive, default=2, help="on the CPU (default %(default)s)")
    command.add_argument("--kl-weight", type=float, default=0.1, help="of the smoothing term (default %(default)s)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")


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
    _write(args.json, {**setting, **figures})


def _add_floors(subjects: argparse._SubParsersAction) -> None:
    command = subjects.add_parser("floors", help="BLEU of copying the source and of word-for-word translation")
    for name in ("train", "test"):
        command.add_argument(f"--{name}", type=Path, nargs=2, required=True, metavar=("SOURCE", "TARGET"))
    command.add_argument("--rounds", type=_positive, default=5, help="of the dictionary's EM (default %(default)s)")
    command.set_defaults(run=_floors)


def _floors(args: argparse.Namespace) -> None:
    from bnb_ds.bench import floors

    for name, score in floors.measure(tuple(args.train), tuple(args.test), args.rounds).items():
        print(f"{name:15} BLEU {score:.2f}")


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
    _refuse_missing_device(args.device)
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
    setting = _announce(args)
    device, dtype = torch.device(args.device), ctc.DTYPES[args.dtype]
    shapes = args.shape or ctc.DEFAULT_SHAPES
    results = [ctc.measure(shape, device, dtype, args.kl_weight, args.repeats) for shape in shapes]
    print(ctc.table(results))
    _write(args.json, {**setting, "results": results})


def _train(args: argparse.Namespace) -> None:
    chosen = ("shards", "size", "batch_size", "max_length", "target_tokens", "decoder_ratio")
    setting = _announce(args, **{name: getattr(args, name) for name in chosen})
    result = train.measure(
        train.Setting(
            **{name: getattr(args, name) for name in (*chosen, "kl_weight", "repeats")},
            dtype=ctc.DTYPES[args.dtype],
            device=torch.device(args.device),
        )
    )
    share = result["tokens"] / result["padded_tokens"]
    print(f"{result['parameters'] / 1e6:.1f}M parameters, {result['tokens']:,} real tokens, {share:.0%} of the padded")
    print(train.table(result))
    _write(args.json, {**setting, "shards": str(args.shards), **result})


def _announce(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Check what could not work, and print on what and with what is measured."""
    _refuse_missing_device(args.device)
    _refuse_missing_parent(args.json)
    torch.set_num_threads(args.threads)
    setting = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} threads",
        "dtype": args.dtype,
        "kl_weight": args.kl_weight,
        "repeats": args.repeats,
        **_versions(),
        **more,
    }
    print(", ".join(f"{name} {value}" for name, value in setting.items()), flush=True)
    return setting


def _write(path: Path | None, figures: dict[str, Any]) -> None:
    if path is not None:
        write_atomic(path, json.dumps(figures, indent=2) + "\n")


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "python": platform.python_version()}


def _refuse_missing_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here: use --device cpu")


def _refuse_missing_parent(file: Path | None) -> None:
    if file is not None and not file.parent.is_dir():
        raise ConfigError(f"--json {file}: there is no directory {file.parent}: make it first")


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"a positive whole number is required, not {text}")
    return value
