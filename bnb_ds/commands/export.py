"""The commands ``bnb-ds export``, ``average``, ``import-reference`` and ``import-optimus``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bnb_ds.common.arguments import describe, positive
from bnb_ds.errors import ConfigError

#: those of `bnb_ds.model.configuration`, whose import would take seconds
_DECODER_LENGTHS = ("source", "padded", "predicted")


def add_export(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds export``."""
    describe(
        command,
        "Write a checkpoint of a run as a Hugging Face directory, or an exported model as an ONNX graph.",
        "bnb-ds export work/runs/tiny work/models/tiny",
    )
    command.add_argument(
        "checkpoint",
        type=Path,
        help="one checkpoint, or a run's output_dir (its newest checkpoint; for fine-tuning its best);"
        " with --format onnx, an exported model",
    )
    command.add_argument("output", type=Path, help="directory to write; it must be new or empty")
    command.add_argument("--encoder", action="store_true", help="export only the encoder, as a plain BERT model")
    command.add_argument(
        "--format",
        choices=("transformers", "onnx"),
        default="transformers",
        help="`onnx` converts an exported model to a graph for ONNX Runtime (default %(default)s)",
    )
    command.add_argument(
        "--dtype",
        choices=("fp32", "int8"),
        default="fp32",
        help="number format of the ONNX graph (default %(default)s)",
    )
    command.set_defaults(run=_export)


def add_average(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds average``."""
    describe(
        command,
        "Write the mean of the weights of several checkpoints of one model as a model directory.",
        "bnb-ds average work/runs/xsum --best 5 --output work/models/xsum_average",
    )
    command.add_argument(
        "source",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="output_dir of a run, or of several runs that began with the same weights, or single checkpoints",
    )
    number = command.add_mutually_exclusive_group(required=True)
    number.add_argument("--last", type=positive, metavar="N", help="average the N newest checkpoints of each run")
    number.add_argument(
        "--best", type=positive, metavar="N", help="average the N checkpoints of each run with the best evaluations"
    )
    command.add_argument(
        "--output", type=Path, help="directory to write; new or empty (default: average, in the first run)"
    )
    command.set_defaults(run=_average)


def add_import_reference(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds import-reference``."""
    describe(
        command,
        "Convert a model that was saved by the reference implementation of the paper to an exported model.",
        "bnb-ds import-reference reference/checkpoint-1000 work/models/reference --tokenizer vocab.txt",
    )
    command.add_argument("source", type=Path, help="directory that the reference's save_pretrained wrote")
    command.add_argument("output", type=Path, help="directory to write; it must be new or empty")
    command.add_argument("--tokenizer", type=Path, help="tokenizer directory or vocab.txt (default: the one in SOURCE)")
    command.add_argument(
        "--decoder-length",
        choices=_DECODER_LENGTHS,
        default="padded",
        help="policy of decoder positions; `padded` computes the same as the reference (default %(default)s)",
    )
    command.set_defaults(run=_import_reference)


def add_import_optimus(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds import-optimus``."""
    describe(
        command,
        "Convert an encoder of Optimus to a plain BERT, for recipes with model.kind classifier.",
        "bnb-ds import-optimus optimus/checkpoint-encoder-508523 work/models/optimus --tokenizer bert-base-cased",
    )
    command.add_argument("source", type=Path, help="directory checkpoint-encoder-STEP that Optimus saved")
    command.add_argument("output", type=Path, help="directory to write; it must be new or empty")
    command.add_argument("--tokenizer", type=Path, help="tokenizer directory or vocab.txt (default: the one in SOURCE)")
    command.set_defaults(run=_import_optimus)


def _average(args: argparse.Namespace) -> None:
    from bnb_ds.checkpoint.averaging import run_at
    from bnb_ds.export.from_run import export_average

    output = args.output or run_at(args.source[0]) / "average"
    found = export_average(args.source, output, last=args.last, best=args.best)
    print(f"average: {', '.join(path.name for path in found)} -> {output}")


def _export(args: argparse.Namespace) -> None:
    if args.format == "onnx":
        from bnb_ds.export.onnx import export_onnx

        if args.encoder:
            raise ConfigError(
                "--encoder: an ONNX graph is always the whole model: leave --encoder out with --format onnx"
            )
        export_onnx(args.checkpoint, args.output, dtype=args.dtype)
        print(f"export: {args.checkpoint} -> {args.output} (ONNX, {args.dtype})")
        return
    if args.dtype != "fp32":
        raise ConfigError(
            "--dtype int8 needs --format onnx; the precision of other models is chosen when they are used"
        )
    from bnb_ds.export.from_run import export

    found, notes = export(args.checkpoint, args.output, encoder_only=args.encoder)
    for note in notes:
        print(note, file=sys.stderr)
    print(f"export: {found} -> {args.output}")


def _import_reference(args: argparse.Namespace) -> None:
    from bnb_ds.export.import_reference import import_reference

    overrides = {"decoder_length": args.decoder_length}
    for note in import_reference(args.source, args.output, tokenizer=args.tokenizer, overrides=overrides):
        print(note, file=sys.stderr)
    print(f"import-reference: {args.source} -> {args.output}")


def _import_optimus(args: argparse.Namespace) -> None:
    from bnb_ds.export.import_optimus import import_optimus

    for note in import_optimus(args.source, args.output, tokenizer=args.tokenizer):
        print(note, file=sys.stderr)
    print(f"import-optimus: {args.source} -> {args.output}")
