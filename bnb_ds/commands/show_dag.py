"""The command ``bnb-ds show-dag``."""

from __future__ import annotations

import argparse
from pathlib import Path

from bnb_ds.common.arguments import add_overwrite, describe
from bnb_ds.common.files import refuse_output, refuse_overwriting, write_atomic
from bnb_ds.errors import ConfigError

_STRATEGIES = ("lookahead", "greedy", "viterbi", "joint_viterbi")


def add_show_dag(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds show-dag``."""
    describe(
        command,
        "Draw the graph of slots that a model of target dag makes of one text, as an SVG picture.",
        'bnb-ds show-dag work/models/multi30k_dag --text "Two dogs are running." --output dogs.svg',
    )
    command.add_argument("model", type=Path, help="directory of an exported model")
    command.add_argument("--text", required=True, help="the source")
    command.add_argument("--output", type=Path, required=True, metavar="FILE", help="write the picture to this file")
    add_overwrite(command)
    command.add_argument(
        "--strategy", choices=_STRATEGIES, default="lookahead", help="how the output is read off (default %(default)s)"
    )
    command.add_argument(
        "--least",
        type=float,
        default=0.05,
        metavar="P",
        help="show slots and links that a path takes with at least this probability (default %(default)s)",
    )
    command.set_defaults(run=_show_dag)


def _show_dag(args: argparse.Namespace) -> None:
    if not 0 < args.least <= 1:
        raise ConfigError(f"--least {args.least}: give a probability above 0, up to 1")
    refuse_output(args.output)
    refuse_overwriting(args.output, overwrite=args.overwrite)
    from bnb_ds.dag.strategies import DagOptions
    from bnb_ds.generate.graph_svg import draw
    from bnb_ds.generate.graph_view import view_graph

    view = view_graph(args.model, args.text, DagOptions(args.strategy), least=args.least)
    write_atomic(args.output, draw(view))
    print(
        f"{args.output}: {len(view.vertices)} of {view.num_slots} slots, {len(view.links)} links; output: {view.text}"
    )
