"""The commands ``bnb-ds generate``, ``bnb-ds serve`` and ``bnb-ds reconstruct``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bnb_ds.common.arguments import add_overwrite, describe, natural, positive
from bnb_ds.common.empty_outputs import count_empty, empty_warning
from bnb_ds.errors import CONTINUE_WITH_RESUME, ConfigError

_FLAGS_OF_SHARING = ("--processes",)


def add_generate(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds generate``."""
    describe(
        command,
        "Write one generated line for each line of a text file, in order.",
        "bnb-ds generate work/models/xsum --input articles.txt --output summaries.txt",
    )
    _add_model(command)
    command.add_argument("--input", required=True, help="text file, pipe, or - for standard input")
    command.add_argument("--output", required=True, help="text file, pipe or device, or - for standard output")
    command.add_argument("--resume", action="store_true", help="continue an unfinished output (default: refuse it)")
    add_overwrite(command)
    command.add_argument(
        "--window", type=positive, default=4096, help="lines that are sorted by length together (default %(default)s)"
    )
    sharing = command.add_argument_group("sharing the work")
    sharing.add_argument(
        "--task-index", type=natural, default=0, help="number of the share to do, from 0 (default %(default)s)"
    )
    sharing.add_argument(
        "--num-tasks",
        type=positive,
        default=1,
        help="number of shares; with several, each writes OUTPUT.00000-of-00004 and so on (default %(default)s)",
    )
    sharing.add_argument(
        "--processes",
        type=positive,
        default=1,
        help="divide the input among this many local processes, one GPU each, and join the outputs"
        " (default %(default)s)",
    )
    add_engine_flags(command)
    add_decode_flags(command)
    command.set_defaults(run=_generate, next_step=CONTINUE_WITH_RESUME)


def add_serve(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds serve``."""
    from bnb_ds.serve.limits import ServiceLimits

    describe(
        command,
        "Answer HTTP requests with one model: POST /generate; GET / (a page), /docs, /health, /ready, /metrics.",
        "bnb-ds serve work/models/xsum --port 8000",
    )
    _add_model(command)
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default %(default)s: this machine only)"
    )
    command.add_argument("--port", type=natural, default=8000, help="0: a free port (default %(default)s)")
    limits = command.add_argument_group("limits")
    for flag, kind, default, help_text in (
        ("--max-wait-ms", natural, 5, "milliseconds that a request waits for others to share its batch"),
        ("--max-pending", positive, 1024, "most texts that wait or are being decoded; further requests get 429"),
        ("--max-items", positive, 64, "most texts of a request; a stream has at most this many in the queue at a time"),
        ("--max-stream-items", positive, 10_000, "most texts of a request whose outputs are streamed"),
        ("--max-beam-size", positive, ServiceLimits.max_beam_size, "largest beam_size and length_beam of a request"),
        ("--max-body-bytes", positive, 1 << 20, "largest body of a request, in bytes"),
        ("--timeout-seconds", positive, 60, "longest time to receive a body, and to answer it; then its work ends"),
        ("--header-seconds", positive, 10, "longest time from the start of a connection to the end of its headers"),
        ("--shutdown-seconds", positive, 60, "longest time for accepted requests after SIGTERM"),
    ):
        limits.add_argument(flag, type=kind, default=default, help=f"{help_text} (default %(default)s)")
    limits.add_argument(
        "--max-connections", type=positive, help="most open connections (default: 4096, or what `ulimit -n` allows)"
    )
    limits.add_argument(
        "--max-connections-per-client",
        type=positive,
        help="most open connections of one address; behind a proxy, give as many as in all (default: half of all)",
    )
    command.add_argument("--no-request-log", action="store_true", help="do not log each request")
    add_engine_flags(command)
    add_decode_flags(command)
    command.set_defaults(run=_serve)


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", type=Path, help="directory that `bnb-ds export` wrote, in torch or ONNX format")
    command.add_argument(
        "--special-tokens",
        choices=("none", "mask", "all"),
        help="special tokens that the letters of a text can spell, such as [MASK] (default: mask for a pre-trained"
        " model, none for a fine-tuned one)",
    )


def add_engine_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags that choose the engine."""
    engine = command.add_argument_group("engine")
    engine.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    engine.add_argument(
        "--dtype",
        choices=("fp32", "bf16", "fp16", "int8"),
        default="fp32",
        help="number format; fp16 needs a GPU, int8 an ONNX model (default %(default)s)",
    )
    engine.add_argument(
        "--compile", action="store_true", help="use torch.compile for a few lengths; only for greedy decoding"
    )
    engine.add_argument(
        "--token-budget",
        type=positive,
        help="most source tokens and slots of a batch; a slot counts once for each hypothesis of a beam (default: 4096,"
        " on a GPU 65536)",
    )


def add_decode_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags that choose the outputs."""
    decoding = command.add_argument_group("decoding")
    for flag, kind, default, help_text in (
        ("--beam-size", positive, 1, "prefixes kept by the CTC beam search; 1: greedy"),
        ("--beam-classes", positive, 16, "most probable classes of each slot that the beam search tries"),
        ("--min-length", natural, 0, "fewest tokens of an output"),
    ):
        decoding.add_argument(flag, type=kind, default=default, help=f"{help_text} (default %(default)s)")
    decoding.add_argument(
        "--strategy",
        help="how a path through a graph of slots is chosen, for models with target dag: greedy, lookahead, viterbi,"
        " joint_viterbi, beam or sample (default: lookahead)",
    )
    decoding.add_argument(
        "--lookahead-beta", type=float, default=1.0, help="weight of a slot's token in lookahead (default %(default)s)"
    )
    decoding.add_argument(
        "--length-penalty",
        type=float,
        default=1.0,
        help="power of the length that divides the score of a path; more favours longer outputs (default %(default)s)",
    )
    for flag, kind, help_text in (
        ("--length-beam", positive, "number of lengths to try, for models with length classification"),
        ("--refinement", natural, "further passes, which see earlier tokens; for cmlm, inat and models with glancing"),
        ("--exit-entropy", float, "nats below which a position exits a layer; for models with deep_supervision"),
        ("--blank-penalty", float, "nats by which the CTC blank is lowered, for longer outputs"),
    ):
        decoding.add_argument(flag, type=kind, metavar="N", help=f"{help_text} (default: the model's own, or none)")
    for flag, help_text in (
        ("--temperature", "below 1, --strategy sample draws likely links and tokens more often"),
        ("--top-p", "--strategy sample draws from the most probable ones, which hold this much together"),
    ):
        decoding.add_argument(flag, type=float, default=1.0, help=f"{help_text} (default %(default)s)")
    decoding.add_argument("--seed", type=natural, default=0, help="seed of --strategy sample (default %(default)s)")
    decoding.add_argument("--max-length", type=positive, help="most tokens of an output (default: no limit)")
    decoding.add_argument(
        "--no-repeat-ngram-size",
        type=natural,
        default=0,
        metavar="N",
        help="no n-gram of N tokens twice in an output; 0: no such rule (default %(default)s)",
    )
    decoding.add_argument(
        "--bad-word",
        action="append",
        default=[],
        metavar="WORD",
        help="word that is never written, however it is spelled; may be repeated",
    )
    decoding.add_argument("--bad-words-inside", action="store_true", help="nor inside longer words")
    decoding.add_argument("--bad-words-any-case", action="store_true", help="nor in upper or lower case")
    decoding.add_argument(
        "--lm", type=Path, metavar="FILE", help="n-gram model (ARPA or KenLM binary) that scores the beam search"
    )
    decoding.add_argument("--lm-weight", type=float, default=0.5, help="weight of --lm (default %(default)s)")
    decoding.add_argument(
        "--word-bonus", type=float, default=0.0, help="nats added for each word, with --lm (default %(default)s)"
    )


def pipeline_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `bnb_ds.generate.pipeline.BnbPipeline.from_pretrained`."""
    names = [
        "device",
        "dtype",
        "compile",
        "token_budget",
        "special_tokens",
        "beam_size",
        "strategy",
        "lookahead_beta",
        "length_penalty",
        "temperature",
        "top_p",
        "seed",
        "refinement",
        "exit_entropy",
        "blank_penalty",
        "beam_classes",
        "length_beam",
        "min_length",
        "max_length",
        "no_repeat_ngram_size",
        "lm_weight",
        "word_bonus",
        "bad_words_inside",
        "bad_words_any_case",
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
        overwrite=args.overwrite,
        task_index=args.task_index,
        num_tasks=args.num_tasks,
        window=args.window,
        progress=sys.stderr.isatty(),
    )
    if args.processes == 1:
        print(generate_lines(job), file=sys.stderr)
        return
    if args.num_tasks > 1:
        raise ConfigError("--processes divides a whole input: give either --processes or --num-tasks")
    print(generate_in_processes(job, _without_sharing(args.command_line), args.processes), file=sys.stderr)


def _serve(args: argparse.Namespace) -> None:
    from bnb_ds.serve.server import listen, log_requests, require_packages, serve

    require_packages()
    from bnb_ds.decoding.batching import default_token_budget
    from bnb_ds.generate.open_model import choose_device
    from bnb_ds.generate.pipeline import BnbPipeline
    from bnb_ds.serve.limits import ServiceLimits, connection_caps

    max_connections, per_client = connection_caps(args.max_connections, args.max_connections_per_client)
    bound = listen(args.host, args.port)
    with bound:
        limits = ServiceLimits(
            max_wait_seconds=args.max_wait_ms / 1e3,
            token_budget=args.token_budget or default_token_budget(choose_device(args.device)),
            max_pending=args.max_pending,
            max_items=args.max_items,
            max_stream_items=args.max_stream_items,
            max_beam_size=args.max_beam_size,
            max_body_bytes=args.max_body_bytes,
            timeout_seconds=float(args.timeout_seconds),
            header_seconds=float(args.header_seconds),
            max_connections=max_connections,
            max_connections_per_client=per_client,
        )
        pipeline = BnbPipeline.from_pretrained(args.model, **pipeline_settings(args))
        log_requests(each=not args.no_request_log)
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
    describe(
        command,
        "Mask words of held-out documents, and show what a model restores.",
        "bnb-ds reconstruct work/models/tiny --shards work/shards/tiny --num 3",
    )
    command.add_argument("model", type=Path, help="directory that `bnb-ds export` wrote")
    command.add_argument("--shards", type=Path, required=True, help="shard directory made with the model's tokenizer")
    command.add_argument("--num", type=positive, default=4, help="number of documents (default %(default)s)")
    command.add_argument(
        "--max-length", type=positive, default=48, help="most tokens of a document (default %(default)s)"
    )
    command.add_argument(
        "--mask-probability", type=float, default=0.15, help="probability that a token is masked (default %(default)s)"
    )
    command.add_argument("--seed", type=natural, default=0, help="seed of the masks (default %(default)s)")
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
    outputs = []
    for source, output, original in shown:
        print(f"source    {source}\noutput    {output}\noriginal  {original}\n")
        outputs.append(output)
    if warning := empty_warning(count_empty(outputs), len(outputs)):
        print(warning, file=sys.stderr)
