"""The command ``bnb-ds bench generate``: its flags, tables, JSON and chart."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bnb_ds.bench.flags import (
    add_device,
    add_json,
    add_repeats,
    add_threads,
    refuse_missing_device,
    refuse_missing_parent,
    versions,
    write,
)
from bnb_ds.bench.generation import reference_style as bench
from bnb_ds.bench.generation import report
from bnb_ds.bench.generation.contenders import CONTENDERS
from bnb_ds.bench.generation.latency import Effort, Systems
from bnb_ds.bench.generation.nar_contenders import NAR_CONTENDERS
from bnb_ds.bench.generation.sources import read_sources
from bnb_ds.bench.generation.workloads import Workload, fixed_policy, of_references, random_rows
from bnb_ds.common.arguments import describe, positive
from bnb_ds.data.tokenization import load_tokenizer
from bnb_ds.errors import ConfigError
from bnb_ds.export.onnx import require_packages
from bnb_ds.generate.engines import DTYPES, has_bf16
from bnb_ds.tasks.codec import Codec

REFERENCE = "reference-style"
_OTHERS = {**CONTENDERS, **NAR_CONTENDERS}
_SHAPE = ("encoder_layers", "decoder_layers", "hidden_size")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench generate``."""
    describe(
        command,
        "Measure the generation speed of BnB against its reference implementation or against other models.\n"
        "All weights are random, because speed depends only on sizes and lengths.",
        "bnb-ds bench generate --against bert2bert --size tiny --batch-size 1 8 --output-tokens 25",
    )
    command.add_argument(
        "--against",
        nargs="+",
        choices=(REFERENCE, *_OTHERS, "all"),
        required=True,
        help="systems to compare with; all: every model; " + "; ".join(f"{k}: {v}" for k, v in _OTHERS.items()),
    )
    command.add_argument(
        "--size", choices=tuple(bench.SIZES), default="base", help="size of the models (default %(default)s)"
    )
    for half in ("encoder", "decoder"):
        command.add_argument(
            f"--{half}-layers", type=positive, metavar="N", help=f"layers of BnB's {half} (default: those of --size)"
        )
    command.add_argument(
        "--hidden-size",
        type=_width,
        metavar="N",
        help=f"width of BnB alone, a multiple of {bench.HEAD_SIZE} (default: that of --size)",
    )
    command.add_argument("--engine", choices=bench.ENGINES, default="torch", help="engine of BnB (default %(default)s)")
    command.add_argument(
        "--dtype",
        choices=(*DTYPES, "int8"),
        default="fp32",
        help="number format of all systems; int8 applies only to BnB (default %(default)s)",
    )
    add_device(command)
    add_threads(command)
    add_repeats(command, 3)
    command.add_argument(
        "--batch-size",
        type=positive,
        nargs="+",
        help=f"sources decoded together (default: 8 with {REFERENCE}, otherwise 1 8 32 128)",
    )
    add_json(command)
    command.add_argument("--png", type=Path, metavar="FILE", help="also draw a chart; needs the extra [plot]")
    _add_sources(command)
    _add_autoregressive(command)
    command.set_defaults(run=_run)


def _add_sources(command: argparse.ArgumentParser) -> None:
    sources = command.add_argument_group("real texts")
    sources.add_argument(
        "--data",
        type=Path,
        help="SQuAD JSON, JSON lines (source, and target or summary), or plain lines, also as .gz"
        " (default: random tokens)",
    )
    sources.add_argument(
        "--references", type=Path, metavar="FILE", help="file whose lines are the references of --data's lines"
    )
    sources.add_argument("--tokenizer", type=Path, help="tokenizer directory or vocab.txt")
    sources.add_argument("--target-tokenizer", type=Path, help="tokenizer of the references (default: --tokenizer)")
    sources.add_argument(
        "--num-sources",
        type=positive,
        help="number of texts, spread over the file (default: 32, or the largest batch if that is larger)",
    )
    sources.add_argument(
        "--decoder-ratio", type=float, default=2.0, help="decoder slots per source token (default %(default)s)"
    )
    sources.add_argument("--decoder-min", type=positive, default=1, help="fewest slots (default %(default)s)")
    sources.add_argument("--decoder-max", type=positive, help="most slots (default: no limit)")


def _add_autoregressive(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("against autoregressive models")
    group.add_argument(
        "--beams", type=positive, nargs="+", default=[1], help="numbers of beams; 1: greedy (default %(default)s)"
    )
    group.add_argument(
        "--output-tokens",
        type=positive,
        nargs="+",
        help="tokens of every output, including the end token (default: lengths of the references; without --data 25 60"
        " 128)",
    )
    group.add_argument(
        "--source-tokens",
        type=positive,
        default=512,
        help="tokens of a random source, without --data (default %(default)s)",
    )
    group.add_argument(
        "--slots-per-token", type=float, default=1.1, help="decoder slots per output token (default %(default)s)"
    )
    group.add_argument(
        "--batches", type=positive, default=2, help="most batches of each batch size (default %(default)s)"
    )
    group.add_argument(
        "--whole",
        action="store_true",
        help="measure all batches of the file (or of --num-sources), and their total time",
    )
    group.add_argument(
        "--limit",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="skip cells of the table that take longer (default %(default)s)",
    )


def _run(args: argparse.Namespace) -> None:
    _check(args)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    head = {
        "against": " ".join(args.against),
        "size": args.size,
        **{name: getattr(args, name) for name in _SHAPE if getattr(args, name)},
        "engine": args.engine,
        "dtype": args.dtype,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} threads",
        "bf16_in_hardware": has_bf16(device),
        "repeats": args.repeats,
        **versions(),
    }
    print(", ".join(f"{name} {value}" for name, value in head.items()), flush=True)
    against_reference = args.against == [REFERENCE]
    results: list[dict[str, Any]] = []
    for result in (_against_reference if against_reference else _against_autoregressive)(args, device):
        results.append(result)
        write(args.json, {**head, "results": results})  # written after every result, because a run may be stopped
    print(report.reference_table(results) if against_reference else report.latency_tables(results))
    if args.png is not None:
        bars = (report.reference_bars if against_reference else report.latency_bars)(results)
        report.draw(args.png, bars, f"{args.size}, {args.dtype}, {head['device']}")


def _check(args: argparse.Namespace) -> None:
    refuse_missing_device(args.device)
    for flag in ("json", "png"):
        refuse_missing_parent(getattr(args, flag), flag, [args.data, args.references], overwrite=args.overwrite)
    if args.png is not None:
        report.require_matplotlib()
    if args.engine == "onnx":
        require_packages()
    if (args.dtype == "int8" and args.engine != "onnx") or (args.engine == "onnx" and args.dtype in ("bf16", "fp16")):
        raise ConfigError(
            f"--engine {args.engine} --dtype {args.dtype}: int8 needs --engine onnx, which supports fp32 and int8"
        )
    for flag, value in (("--decoder-ratio", args.decoder_ratio), ("--slots-per-token", args.slots_per_token)):
        if not 0 < value < float("inf"):
            raise ConfigError(f"{flag} {value}: give a number above 0")
    if args.decoder_max is not None and args.decoder_max < args.decoder_min:
        raise ConfigError(f"--decoder-max {args.decoder_max}: give at least --decoder-min {args.decoder_min}")
    for flag, slots in (("--decoder-min", args.decoder_min), ("--decoder-max", args.decoder_max or 1)):
        if slots > bench.POSITIONS:
            raise ConfigError(f"{flag} {slots}: give at most {bench.POSITIONS}, the number of decoder positions")
    if REFERENCE in args.against:
        _check_reference(args)
    else:
        _check_autoregressive(args)


def _check_reference(args: argparse.Namespace) -> None:
    if len(args.against) > 1:
        raise ConfigError(f"--against {REFERENCE}: cannot be combined with other systems; leave them out")
    if args.data is None or args.tokenizer is None:
        raise ConfigError(f"--against {REFERENCE} needs real texts: give --data and --tokenizer")


def _check_autoregressive(args: argparse.Namespace) -> None:
    if (args.data is None) != (args.tokenizer is None):
        raise ConfigError("--data and --tokenizer go together: give both, or neither for random sources")
    if args.data is None:
        for flag in ("references", "target_tokenizer", "num_sources", "whole"):
            if getattr(args, flag):
                raise ConfigError(f"--{flag.replace('_', '-')}: needs real texts: give --data and --tokenizer")
    if args.batch_size is None:
        args.batch_size = [size for size in (1, 8, 32, 128) if size <= (args.num_sources or 128)]
    if args.num_sources is not None and max(args.batch_size) > args.num_sources:
        raise ConfigError(f"--batch-size {max(args.batch_size)}: give at most --num-sources {args.num_sources}")
    if args.whole and args.output_tokens:
        raise ConfigError("--whole: the references give the lengths of outputs; leave --output-tokens out")
    if args.output_tokens and args.references:
        raise ConfigError(
            "--references: the references give the lengths of outputs; leave --output-tokens or --references out"
        )
    if args.data is None and args.source_tokens > bench.POSITIONS:
        raise ConfigError(f"--source-tokens {args.source_tokens}: give at most {bench.POSITIONS}")
    if args.output_tokens and args.slots_per_token * max(args.output_tokens) > bench.POSITIONS:
        raise ConfigError(f"--output-tokens {max(args.output_tokens)}: give at most {bench.POSITIONS} decoder slots")
    if not args.limit > 0:
        raise ConfigError(f"--limit {args.limit}: give a number of seconds above 0")


def _width(text: str) -> int:
    """A hidden size that heads of 64 divide."""
    value = positive(text)
    if value % bench.HEAD_SIZE:
        raise argparse.ArgumentTypeError(f"a multiple of {bench.HEAD_SIZE} is required, not {text}")
    return value


def _setting(args: argparse.Namespace, vocab_size: int, device: torch.device) -> bench.Setting:
    shape = {name: getattr(args, name) for name in _SHAPE}
    return bench.Setting(args.size, vocab_size, args.dtype, device, args.repeats, args.engine, **shape)


def _against_reference(args: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    tokenizer = load_tokenizer(args.tokenizer)
    rows = read_sources(args.data, tokenizer, args.num_sources or 32)
    setting = _setting(args, len(tokenizer), device)
    for size in args.batch_size or [8]:
        yield {"data": args.data.name, **bench.against_reference(setting, rows, size, _policy(args))}


def _against_autoregressive(args: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    codec = _codec(args)
    workloads = _workloads(args, codec)
    setting = _setting(args, len(codec.source), device)
    names = [name for name in _OTHERS if name in args.against or "all" in args.against]
    systems = Systems(replace(setting, target_vocab_size=len(codec.target)), codec, names)
    millions = (f"{name} {count / 1e6:.1f} M" for name, count in systems.parameters().items())
    print("parameters: " + ", ".join(millions), flush=True)
    # Random sources all have one length, so one batch is enough.
    batches = None if args.whole else args.batches if args.data is not None else 1
    effort = Effort(args.batch_size, args.beams, batches, args.limit)
    for workload in workloads:
        for result in systems.measure(workload, effort):
            print(f"measured: {workload.name}, batch {result['batch_size']}", file=sys.stderr, flush=True)
            yield result


def _codec(args: argparse.Namespace) -> Codec:
    if args.data is None:
        from bnb_ds.bench.synthetic import tokenizer

        source = tokenizer()
    else:
        source = load_tokenizer(args.tokenizer)
    return Codec(source, load_tokenizer(args.target_tokenizer) if args.target_tokenizer else source)


def _workloads(args: argparse.Namespace, codec: Codec) -> list[Workload]:
    count = args.num_sources or max(32, *args.batch_size)
    if args.data is not None and args.output_tokens is None:
        count = args.num_sources if args.whole else count
        return [of_references(args.data, args.references, codec, count, _policy(args))]
    if args.data is None:
        name, rows = f"{args.source_tokens} random tokens", random_rows(count, args.source_tokens, len(codec.source))
    else:
        name, rows = args.data.name, read_sources(args.data, codec.source, count)
    return [
        Workload(f"{name} -> {length}", rows, [length] * len(rows), fixed_policy(length, args.slots_per_token))
        for length in args.output_tokens or [25, 60, 128]
    ]


def _policy(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "decoder_length_ratio": args.decoder_ratio,
        "decoder_length_min": args.decoder_min,
        "decoder_length_max": args.decoder_max or bench.POSITIONS,
    }
