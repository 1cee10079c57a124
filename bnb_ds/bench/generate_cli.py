"""The command ``bnb-ds bench generate``: flags, tables, JSON and picture."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import torch

from bnb_ds.arguments import positive
from bnb_ds.bench import generate as bench
from bnb_ds.bench.options import refuse_missing_device, versions
from bnb_ds.bench.sources import read_sources
from bnb_ds.engines import has_bf16
from bnb_ds.errors import ConfigError
from bnb_ds.files import write_atomic
from bnb_ds.onnx_export import require_packages
from bnb_ds.tokenization import load_tokenizer


def add_command(subjects: argparse._SubParsersAction) -> None:
    """Add ``bench generate``."""
    command = subjects.add_parser("generate", help="generation beside the reference's way and autoregressive models")
    command.add_argument("--against", choices=("reference-style", "bert2bert"), required=True)
    command.add_argument("--size", choices=tuple(bench.SIZES), default="base", help="default %(default)s")
    command.add_argument("--engine", choices=bench.ENGINES, default="torch", help="of ours (default %(default)s)")
    command.add_argument(
        "--dtype", choices=(*bench.DTYPES, "int8"), default="fp32", help="of ours and bert2bert (default %(default)s)"
    )
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default %(default)s")
    command.add_argument("--threads", type=positive, default=2, help="on the CPU (default %(default)s)")
    command.add_argument("--repeats", type=positive, default=3, help="of each median (default %(default)s)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    command.add_argument("--png", type=Path, metavar="FILE", help="and a picture; needs the extra [plot]")
    reference = command.add_argument_group("against reference-style")
    reference.add_argument("--data", type=Path, help="texts: SQuAD JSON, JSON lines or lines, also .gz")
    reference.add_argument("--tokenizer", type=Path, help="directory or vocab.txt")
    reference.add_argument("--num-sources", type=positive, default=32, help="default %(default)s")
    reference.add_argument("--decoder-ratio", type=float, default=2.0, help="slots per token (default %(default)s)")
    reference.add_argument("--decoder-min", type=positive, default=1, help="fewest slots (default %(default)s)")
    reference.add_argument("--decoder-max", type=positive, help="most slots (default: no limit)")
    autoregressive = command.add_argument_group("against bert2bert")
    autoregressive.add_argument("--output-tokens", type=positive, nargs="+", default=[25, 60, 128])
    autoregressive.add_argument("--source-tokens", type=positive, default=512, help="default %(default)s")
    autoregressive.add_argument(
        "--slots-per-token", type=float, default=1.1, help="decoder slots for each output token (default %(default)s)"
    )
    command.add_argument("--batch-size", type=positive, nargs="+", help="default: 8, beside bert2bert 1 8 32")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    _check(args)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    results = (_against_reference if args.against == "reference-style" else _against_bert2bert)(args, device)
    head = {
        "against": args.against,
        "size": args.size,
        "engine": args.engine,
        "dtype": args.dtype,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} threads",
        "bf16_in_hardware": has_bf16(device),
        "repeats": args.repeats,
        **versions(),
    }
    print(", ".join(f"{name} {value}" for name, value in head.items()))
    print(table(args.against, results))
    if args.json is not None:
        write_atomic(args.json, json.dumps({**head, "results": results}, indent=2) + "\n")
    if args.png is not None:
        _picture(args.png, args.against, results, f"{args.size}, {args.dtype}, {head['device']}")


def _check(args: argparse.Namespace) -> None:
    refuse_missing_device(args.device)
    for flag in ("json", "png"):
        path = getattr(args, flag)
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"--{flag} {path}: there is no directory {path.parent}: make it first")
    if args.against == "reference-style" and (args.data is None or args.tokenizer is None):
        raise ConfigError("--against reference-style measures real texts: give --data and --tokenizer")
    if args.png is not None:
        _pyplot()
    if args.engine == "onnx":
        require_packages()
    if (args.dtype == "int8" and args.engine != "onnx") or (args.engine == "onnx" and args.dtype in ("bf16", "fp16")):
        raise ConfigError(f"--engine {args.engine} --dtype {args.dtype}: int8 needs onnx, which has fp32 and int8")
    if args.source_tokens > bench.POSITIONS:
        raise ConfigError(f"--source-tokens {args.source_tokens}: give at most {bench.POSITIONS}")
    if args.slots_per_token * max(args.output_tokens) > bench.POSITIONS:
        raise ConfigError(f"--output-tokens {max(args.output_tokens)}: give at most {bench.POSITIONS} decoder slots")


def _against_reference(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    tokenizer = load_tokenizer(args.tokenizer)
    rows = read_sources(args.data, tokenizer, args.num_sources)
    setting = bench.Setting(args.size, len(tokenizer), args.dtype, device, args.repeats, args.engine)
    policy = {
        "decoder_length_ratio": args.decoder_ratio,
        "decoder_length_min": args.decoder_min,
        "decoder_length_max": args.decoder_max or bench.POSITIONS,
    }
    results = [bench.against_reference(setting, rows, size, policy) for size in args.batch_size or [8]]
    return [{"data": args.data.name, **result} for result in results]


def _against_bert2bert(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    setting = bench.Setting(args.size, 28996, args.dtype, device, args.repeats, args.engine)
    sizes = args.batch_size or [1, 8, 32]
    return bench.against_bert2bert(setting, sizes, args.output_tokens, args.source_tokens, args.slots_per_token)


def table(against: str, results: list[dict[str, Any]]) -> str:
    """Markdown."""
    return _reference_table(results) if against == "reference-style" else _bert2bert_table(results)


def _reference_table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| data | source tokens, mean | slots, mean (policy: ratio, min, max) | batch | sentences/s: ours / "
        "reference-style | faster, wall | faster, CPU s | identical at equal slots | as in fp32 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        count, timings = result["num_sources"], result["timings"]
        rates = [count / timings[way]["p50_seconds"] for way in ("ours", "reference-style")]
        policy = ", ".join(str(value) for value in result["policy"].values())
        cells = (
            result["data"],
            f"{result['source_tokens']['mean']:.0f}",
            f"{result['decoder_slots']['mean']:.0f} ({policy})",
            str(result["batch_size"]),
            " / ".join(f"{rate:.3g}" for rate in rates),
            f"{result['speedup_wall']:.1f}",
            f"{result['speedup_cpu']:.1f}",
            f"{result['identical_at_equal_slots']} of {count}",
            f"{result['identical_to_fp32_torch']} of {count}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _bert2bert_table(results: list[dict[str, Any]]) -> str:
    ways = ("ours", "bert2bert", "deep-shallow")
    lines = [
        "| batch | output tokens | our slots | p50 s a batch: " + " / ".join(ways) + " | p95 s | CPU s | faster than "
        "bert2bert, deep-shallow (wall) | (CPU s) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        timings = result["timings"]
        columns = [
            " / ".join(f"{timings[way][what]:.3g}" for way in ways)
            for what in ("p50_seconds", "p95_seconds", "cpu_seconds")
        ]
        ratios = [", ".join(f"{result[what][way]:.2f}" for way in ways[1:]) for what in ("speedup_wall", "speedup_cpu")]
        numbers = [str(result[what]) for what in ("batch_size", "output_tokens", "decoder_slots")]
        lines.append("| " + " | ".join([*numbers, *columns, *ratios]) + " |")
    return "\n".join(lines)


def _pyplot() -> Any:
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        raise ConfigError("--png needs matplotlib: pip install bnb_ds[plot]") from None
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def _picture(path: Path, against: str, results: list[dict[str, Any]], title: str) -> None:
    plot = _pyplot()
    figure, axes = plot.subplots(figsize=(8, 4))
    if against == "reference-style":
        names = [f"{result['data']}\nbatch {result['batch_size']}" for result in results]
    else:
        names = [f"{result['batch_size']} x {result['output_tokens']}" for result in results]
        axes.set_xlabel("batch size x output tokens")
    ways = list(results[0]["timings"])
    for number, way in enumerate(ways):
        heights = [
            result.get("num_sources", result["batch_size"]) / result["timings"][way]["p50_seconds"]
            for result in results
        ]
        places = [place + 0.8 * number / len(ways) for place in range(len(results))]
        axes.bar(places, heights, width=0.8 / len(ways), label=way, align="edge")
    axes.set_xticks([place + 0.4 for place in range(len(results))], names)
    axes.set_ylabel("sentences per second")
    axes.set_yscale("log")
    axes.set_title(title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plot.close(figure)
