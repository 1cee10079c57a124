"""The commands ``bnb-ds generate`` and ``bnb-ds serve``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bnb_ds.common.arguments import natural, positive
from bnb_ds.errors import ConfigError

_FLAGS_OF_SHARING = ("--processes",)


def add_generate(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds generate``."""
    command.add_argument("model", type=Path, help="an exported model, or one exported with --format onnx")
    command.add_argument("--input", required=True, help="a text file, or - for standard input")
    command.add_argument("--output", required=True, help="a text file, or - for standard output")
    command.add_argument("--resume", action="store_true", help="go on with an unfinished output")
    command.add_argument("--window", type=positive, default=4096, help="lines sorted together (default %(default)s)")
    sharing = command.add_argument_group("sharing the work")
    sharing.add_argument("--task-index", type=natural, default=0, help="which share of the input, from 0")
    sharing.add_argument(
        "--num-tasks", type=positive, default=1, help="shares; each writes OUTPUT.00000-of-00004 and so on"
    )
    sharing.add_argument(
        "--processes", type=positive, default=1, help="share out to processes here, a GPU each, and join the outputs"
    )
    add_engine_flags(command)
    add_decode_flags(command)
    command.set_defaults(run=_generate)


def add_serve(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds serve``."""
    command.add_argument("model", type=Path, help="an exported model, or one exported with --format onnx")
    command.add_argument("--host", default="127.0.0.1", help="default %(default)s: only this machine")
    command.add_argument("--port", type=natural, default=8000, help="0: a free one (default %(default)s)")
    limits = command.add_argument_group("limits")
    limits.add_argument(
        "--max-wait-ms", type=natural, default=5, help="wait for others to decode with (default %(default)s)"
    )
    limits.add_argument("--max-pending", type=positive, default=1024, help="texts, else 429 (default %(default)s)")
    limits.add_argument("--max-items", type=positive, default=64, help="texts of a request (default %(default)s)")
    limits.add_argument("--max-body-bytes", type=positive, default=1 << 20, help="default %(default)s")
    limits.add_argument("--timeout-seconds", type=positive, default=60, help="of a request (default %(default)s)")
    limits.add_argument(
        "--shutdown-seconds",
        type=positive,
        default=60,
        help="for accepted requests after SIGTERM (default %(default)s)",
    )
    add_engine_flags(command)
    add_decode_flags(command)
    command.set_defaults(run=_serve)


def add_engine_flags(command: argparse.ArgumentParser) -> None:
    """What runs the model."""
    engine = command.add_argument_group("engine")
    engine.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU where there is one)")
    engine.add_argument("--dtype", choices=("fp32", "bf16", "fp16", "int8"), default="fp32", help="default %(default)s")
    engine.add_argument("--compile", action="store_true", help="torch.compile for a few lengths; greedy decoding only")
    engine.add_argument(
        "--token-budget", type=positive, help="source tokens and slots of a batch (default: 4096, on a GPU 65536)"
    )


def add_decode_flags(command: argparse.ArgumentParser) -> None:
    """How outputs are chosen."""
    decoding = command.add_argument_group("decoding")
    decoding.add_argument("--beam-size", type=positive, default=1, help="prefixes of the CTC search (default: greedy)")
    decoding.add_argument("--beam-classes", type=positive, default=16, help="of each slot (default %(default)s)")
    decoding.add_argument("--length-beam", type=positive, default=1, help="lengths tried with length classification")
    decoding.add_argument("--min-length", type=natural, default=0, help="of an output, in tokens")
    decoding.add_argument("--max-length", type=positive, help="of an output, in tokens")
    decoding.add_argument("--no-repeat-ngram-size", type=natural, default=0, metavar="N", help="0: no such rule")
    decoding.add_argument("--bad-word", action="append", default=[], metavar="WORD", help="never written; repeatable")
    decoding.add_argument("--lm", type=Path, metavar="FILE", help="n-gram model, ARPA or KenLM binary, for the beam")
    decoding.add_argument("--lm-weight", type=float, default=0.5, help="default %(default)s")
    decoding.add_argument("--word-bonus", type=float, default=0.0, help="nats for each word (default %(default)s)")


def pipeline_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `bnb_ds.generate.pipeline.BnbPipeline.from_pretrained`."""
    names = [
        "device",
        "dtype",
        "compile",
        "token_budget",
        "beam_size",
        "beam_classes",
        "length_beam",
        "min_length",
        "max_length",
        "no_repeat_ngram_size",
        "lm_weight",
        "word_bonus",
    ]
    return {**{name: getattr(args, name) for name in names}, "bad_words": args.bad_word, "lm_path": args.lm}


def _generate(args: argparse.Namespace) -> None:
    from bnb_ds.generate.lines import LineJob, generate_lines
    from bnb_ds.generate.processes import generate_in_processes

    job = LineJob(
        args.model,
        args.input,
        args.output,
        pipeline_settings(args),
        resume=args.resume,
        task_index=args.task_index,
        num_tasks=args.num_tasks,
        window=args.window,
        progress=sys.stderr.isatty(),
    )
    if args.processes == 1:
        print(generate_lines(job), file=sys.stderr)
        return
    if args.num_tasks > 1:
        raise ConfigError("--processes shares out a whole input: give either --processes or --num-tasks")
    print(generate_in_processes(job, _without_sharing(args.command_line), args.processes), file=sys.stderr)


def _serve(args: argparse.Namespace) -> None:
    from bnb_ds.serve.server import listen, require_packages, serve

    require_packages()
    from bnb_ds.decoding.batching import default_token_budget
    from bnb_ds.generate.open_model import choose_device
    from bnb_ds.generate.pipeline import BnbPipeline
    from bnb_ds.serve.app import ServiceLimits

    bound = listen(args.host, args.port)
    with bound:
        limits = ServiceLimits(
            max_wait_seconds=args.max_wait_ms / 1e3,
            token_budget=args.token_budget or default_token_budget(choose_device(args.device)),
            max_pending=args.max_pending,
            max_items=args.max_items,
            max_body_bytes=args.max_body_bytes,
            timeout_seconds=float(args.timeout_seconds),
        )
        pipeline = BnbPipeline.from_pretrained(args.model, **pipeline_settings(args))
        serve(pipeline, limits, bound, shutdown_seconds=args.shutdown_seconds)


def _without_sharing(arguments: list[str]) -> list[str]:
    """The command line without ``--processes N`` or ``--processes=N``."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in _FLAGS_OF_SHARING:
            skip = True
        elif not argument.startswith(tuple(f"{flag}=" for flag in _FLAGS_OF_SHARING)):
            kept.append(argument)
    return kept


def add_reconstruct(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds reconstruct``."""
    command.add_argument("model", type=Path, help="an exported model")
    command.add_argument("--shards", type=Path, required=True, help="a shard directory made with the model's tokenizer")
    command.add_argument("--num", type=positive, default=4, help="documents (default %(default)s)")
    command.add_argument("--max-length", type=positive, default=48, help="tokens of each (default %(default)s)")
    command.add_argument("--mask-probability", type=float, default=0.15, help="default %(default)s")
    command.add_argument("--seed", type=natural, default=0, help="of the masks (default %(default)s)")
    command.set_defaults(run=_reconstruct)


def _reconstruct(args: argparse.Namespace) -> None:
    from bnb_ds.generate.reconstruct import reconstructions

    shown = reconstructions(
        args.model,
        args.shards,
        num_documents=args.num,
        max_length=args.max_length,
        mask_probability=args.mask_probability,
        seed=args.seed,
    )
    for source, output, original in shown:
        print(f"source    {source}\noutput    {output}\noriginal  {original}\n")
