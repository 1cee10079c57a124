"""The command line ``bnb-ds``: parse the arguments, and run one command.

Other packages add commands through the entry-point group ``bnb_ds.commands`` (data_prep adds ``prep``). Each entry is a
function that adds commands to the parser, and stores the function to call as ``run``. What to do after Ctrl-C is
``next_step``, if it is not to repeat the command.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence

import wrapt

from bnb_ds.bench.subjects import add_bench
from bnb_ds.common.arguments import CommandParser
from bnb_ds.common.program import lost_interrupts, run_command
from bnb_ds.version import __version__

#: name, help, and the function that adds the arguments
_COMMANDS = (
    ("check", "check a launch without its machines", "bnb_ds.commands.check:add_check"),
    ("pretrain", "pre-train a model, in this process", "bnb_ds.pretrain.main:add_arguments"),
    ("finetune", "fine-tune a model on a task, in this process", "bnb_ds.finetune.main:add_arguments"),
    ("plan", "compute how fast a step would be on many GPUs", "bnb_ds.commands.scaling_plan:add_plan"),
    ("curves", "show the first and last values that runs logged, or draw curves", "bnb_ds.commands.curves:add_curves"),
    ("export", "write a checkpoint as a Hugging Face directory", "bnb_ds.commands.export:add_export"),
    ("average", "average the weights of several checkpoints of one model", "bnb_ds.commands.export:add_average"),
    (
        "import-reference",
        "convert a model saved by the reference implementation of the paper",
        "bnb_ds.commands.export:add_import_reference",
    ),
    ("import-optimus", "convert an encoder of Optimus to a plain BERT", "bnb_ds.commands.export:add_import_optimus"),
    ("push", "upload an exported model to the Hugging Face hub", "bnb_ds.commands.push:add_push"),
    ("generate", "write one generated line for each line of a file", "bnb_ds.commands.generate:add_generate"),
    ("serve", "answer HTTP requests with one model", "bnb_ds.commands.generate:add_serve"),
    ("show-dag", "draw the graph of slots that a model makes of a text", "bnb_ds.commands.show_dag:add_show_dag"),
    (
        "reconstruct",
        "mask words of held-out documents and show what a model restores",
        "bnb_ds.commands.generate:add_reconstruct",
    ),
    ("evaluate", "run models on one split of a task, and score the outputs", "bnb_ds.commands.tasks:add_evaluate"),
    ("predict", "write labels or texts for rows that have none", "bnb_ds.commands.tasks:add_predict"),
    ("compare", "compare two evaluations of one split by paired bootstrap", "bnb_ds.commands.tasks:add_compare"),
    ("glue", "fine-tune on several tasks with several seeds, and write the table", "bnb_ds.commands.tasks:add_glue"),
    ("tune", "search for the settings with which a recipe reaches the best score", "bnb_ds.commands.tune:add_tune"),
    (
        "distill",
        "make a training set with the outputs of an autoregressive teacher",
        "bnb_ds.commands.tasks:add_distill",
    ),
    (
        "reproduce",
        "print the paper's tables, list their rows, or run one",
        "bnb_ds.commands.reproduce:add_reproduce",
    ),
    ("recipes", "list, show and copy the shipped recipes and JSONs", "bnb_ds.commands.shipped_files:add_recipes"),
    ("completion", "print a script that completes commands in a shell", "bnb_ds.commands.completion:add_completion"),
    ("path", "print where a shipped program or file lies", "bnb_ds.commands.shipped_files:add_path"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit code (2 for a user's error)."""
    return run_command("bnb-ds", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int | None:
    parser = _parser()
    args = parser.parse_args(arguments)
    args.parser = parser
    args.command_line = list(sys.argv[1:] if arguments is None else arguments)
    # Hide transformers' bars for loading and saving weights; long commands show their own.
    wrapt.register_post_import_hook(lambda module: module.disable_progress_bar(), "transformers.utils.logging")
    try:
        with lost_interrupts():
            return args.run(args)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(str(interrupt) or getattr(args, "next_step", "")) from None


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="bnb-ds",
        description="BERT-NAR-BERT: data, models, generation.",
        epilog="`bnb-ds COMMAND --help` describes a command and shows an example.",
    )
    parser.add_argument("--version", action="version", version=f"bnb-ds {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for entry in sorted(importlib.metadata.entry_points(group="bnb_ds.commands")):
        entry.load()(commands)
    add_bench(commands)
    for name, help_text, arguments in _COMMANDS:
        commands.add_parser(name, help=help_text, arguments=arguments)
    return parser


if __name__ == "__main__":
    sys.exit(main())
