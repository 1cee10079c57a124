"""The commands ``bnb-ds export`` and ``bnb-ds import-reference``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bnb_ds.errors import ConfigError
from bnb_ds.model.configuration import DECODER_LENGTH_POLICIES


def add_export(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds export``."""
    command.add_argument("checkpoint", type=Path, help="a run's output_dir (its newest checkpoint) or one checkpoint")
    command.add_argument("output", type=Path, help="a new directory")
    command.add_argument("--encoder", action="store_true", help="only the encoder, as a plain BERT model")
    command.add_argument(
        "--format",
        choices=("transformers", "onnx"),
        default="transformers",
        help="`onnx` makes a graph for ONNX Runtime of a model that was exported already (default %(default)s)",
    )
    command.add_argument("--dtype", choices=("fp32", "int8"), default="fp32", help="of the ONNX graph")
    command.set_defaults(run=_export)


def add_import_reference(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds import-reference``."""
    command.add_argument("source", type=Path, help="a directory that its save_pretrained wrote")
    command.add_argument("output", type=Path, help="a new directory")
    command.add_argument("--tokenizer", type=Path, help="directory or vocab.txt (default: the one beside the weights)")
    command.add_argument(
        "--decoder-length",
        choices=DECODER_LENGTH_POLICIES,
        default="padded",
        help="policy of decoder positions; `padded` computes what the reference does (default %(default)s)",
    )
    command.set_defaults(run=_import_reference)


def _export(args: argparse.Namespace) -> None:
    if args.format == "onnx":
        from bnb_ds.export.onnx import export_onnx

        if args.encoder:
            raise ConfigError("--encoder: the ONNX graph is the whole model: leave it out with --format onnx")
        export_onnx(args.checkpoint, args.output, dtype=args.dtype)
        print(f"export: {args.checkpoint} -> {args.output} (ONNX, {args.dtype})")
        return
    if args.dtype != "fp32":
        raise ConfigError("--dtype int8 is for --format onnx; other precisions are chosen when the model is used")
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
