"""The command line ``bnb-ds``: parses and calls.

Commands of other packages (``prep``, from data_prep) are found through the entry-point group ``bnb_ds.commands``: each
entry is a function that adds its commands to the parser and stores what to call as ``run``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from bnb_ds import __version__
from bnb_ds.bench.cli import add_bench
from bnb_ds.commands.baselines import add_baseline_commands
from bnb_ds.commands.generate import add_generate, add_serve
from bnb_ds.commands.tasks import add_task_commands
from bnb_ds.common.arguments import natural, positive
from bnb_ds.errors import EXIT_USER_ERROR, ConfigError, run_reporting_errors
from bnb_ds.model.configuration import DECODER_LENGTH_POLICIES
from bnb_ds.train.curves import add_curves


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (2 for a user's error)."""
    parser = _parser()
    args = parser.parse_args(arguments)
    args.command_line = list(sys.argv[1:] if arguments is None else arguments)
    disable_progress_bar()  # of loading and saving weights; commands that take long show their own
    return run_reporting_errors("bnb-ds", lambda: args.run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bnb-ds", description="BERT-NAR-BERT: data, models, generation.")
    parser.add_argument("--version", action="version", version=f"bnb-ds {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for entry in sorted(importlib.metadata.entry_points(group="bnb_ds.commands")):
        entry.load()(commands)
    add_bench(commands)
    _add_check(commands)
    add_curves(commands)
    _add_export(commands)
    _add_import_reference(commands)
    add_generate(commands)
    add_serve(commands)
    _add_reconstruct(commands)
    add_task_commands(commands)
    add_baseline_commands(commands)
    return parser


def _add_check(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("check", help="check all of a launch without its machines")
    command.add_argument("recipe", help="YAML file; shipped ones are under runs/recipes/")
    command.add_argument("overrides", nargs="*", metavar="key.path=value", help="as for runs/pretrain.py")
    command.add_argument("--deepspeed_config", required=True, help="JSON file; shipped ones are under ds_configs/")
    command.add_argument("--world-size", type=positive, default=1, help="number of ranks (default %(default)s)")
    command.set_defaults(run=_check)


def _add_export(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("export", help="write a checkpoint as a Hugging Face directory")
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


def _add_import_reference(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "import-reference", help="convert a model saved by the reference implementation of the paper"
    )
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


def _add_reconstruct(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("reconstruct", help="mask words of held-out documents and show what a model restores")
    command.add_argument("model", type=Path, help="an exported model")
    command.add_argument("--shards", type=Path, required=True, help="a shard directory made with the model's tokenizer")
    command.add_argument("--num", type=positive, default=4, help="documents (default %(default)s)")
    command.add_argument("--max-length", type=positive, default=48, help="tokens of each (default %(default)s)")
    command.add_argument("--mask-probability", type=float, default=0.15, help="default %(default)s")
    command.add_argument("--seed", type=natural, default=0, help="of the masks (default %(default)s)")
    command.set_defaults(run=_reconstruct)


def _check(args: argparse.Namespace) -> int:
    from bnb_ds.commands.check import check

    findings = check(args.recipe, args.overrides, args.deepspeed_config, args.world_size)
    print("\n".join(findings.lines))
    faults = len(findings.errors)
    print(f"check: {faults} errors" if faults else "check: nothing stands in the way of this launch")
    return EXIT_USER_ERROR if faults else 0


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
    from bnb_ds.export.pretrained import export

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


def _reconstruct(args: argparse.Namespace) -> None:
    from bnb_ds.generate.lines import reconstructions

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


if __name__ == "__main__":
    sys.exit(main())
