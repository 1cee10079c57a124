"""The command ``bnb-ds bench frontier``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from bnb_ds.bench.flags import add_device, add_threads, refuse_missing_device
from bnb_ds.bench.frontier import pareto
from bnb_ds.bench.frontier.contestants import SETTINGS, read_contestant
from bnb_ds.bench.frontier.measuring import STATE_FILE, Setting, measure
from bnb_ds.common.arguments import add_overrides, describe, natural, positive
from bnb_ds.common.files import disk_errors, refuse_directory, refuse_output
from bnb_ds.errors import CONTINUE, ConfigError
from bnb_ds.generate.engines import DTYPES


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench frontier``."""
    describe(
        command,
        "Measure quality and speed of trained models of any kind that writes texts, in one process: a table with the\n"
        "mean and standard deviation over seeds, and a picture with the line of what no other system beats.",
        "bnb-ds bench frontier CTC=work/runs/a,work/runs/b work/runs/c:num_beams=1 --split test --output work/frontier",
    )
    command.add_argument(
        "systems",
        nargs="+",
        metavar="SYSTEM",
        help="MODEL, or NAME=MODEL,MODEL:KEY=VALUE,KEY=VALUE. Models of one system differ by their seed; scores are"
        " averaged, and the first model is timed. Keys of decoding: num_beams of an autoregressive model, and for all"
        f" others {', '.join(SETTINGS)}",
    )
    command.add_argument("--split", help="split to score (default: the task's first validation split)")
    command.add_argument("--score", nargs="+", help="scores to show; the first is drawn (default: the main score)")
    command.add_argument(
        "--batch-size",
        type=positive,
        nargs="+",
        default=[1, 8, 32],
        help="sentences decoded together (default %(default)s)",
    )
    command.add_argument(
        "--rounds",
        type=natural,
        default=3,
        help="how often all systems decode the sentences in turn; the median counts; 0: only scores (default"
        " %(default)s)",
    )
    command.add_argument(
        "--sentences", type=positive, help="how many to time, spread evenly over the split (default: all)"
    )
    command.add_argument(
        "--dtype", choices=tuple(DTYPES), default="fp32", help="number format of all systems (default %(default)s)"
    )
    add_device(command)
    add_threads(command)
    command.add_argument(
        "--output",
        type=Path,
        required=True,
        help=f"directory for {pareto.JSON_FILE} and {pareto.TABLE_FILE}; what it holds is not measured again",
    )
    command.add_argument("--picture", type=Path, metavar="FILE", help="also draw an SVG or a PNG; replaces the file")
    add_overrides(command, "replace a data setting of all models, for example data.test=FILE; repeatable")
    command.set_defaults(run=_run, next_step=CONTINUE)


def _run(args: argparse.Namespace) -> None:
    contestants = [read_contestant(text) for text in args.systems]
    setting = Setting(
        args.split,
        tuple(args.overrides),
        tuple(args.batch_size),
        args.rounds,
        args.sentences,
        args.dtype,
        args.device,
        args.threads,
    )
    _check(args, [model for contestant in contestants for model in contestant.models])
    torch.set_num_threads(args.threads)
    with disk_errors(args.output):
        args.output.mkdir(parents=True, exist_ok=True)
    comparison = measure(contestants, setting, args.output / STATE_FILE, args.score or ())
    scores = args.score or [comparison.main_score]
    print(pareto.write(args.output, comparison, scores, setting))
    if args.picture is not None:
        pareto.draw(args.picture, comparison, scores[0], pareto.about(comparison, setting))


def _check(args: argparse.Namespace, models: list[Path]) -> None:
    refuse_missing_device(args.device)
    if args.dtype == "fp16" and args.device == "cpu":
        raise ConfigError("--dtype fp16 needs a GPU: use bf16 or fp32 on a CPU")
    refuse_directory(args.output)
    inputs = [path for model in models for path in model.rglob("*")]
    for name in (STATE_FILE, pareto.JSON_FILE, pareto.TABLE_FILE):
        refuse_output(args.output / name, inputs, makes_parents=True)
    if args.picture is None:
        return
    if args.picture.suffix not in pareto.PICTURES:
        raise ConfigError(f"--picture {args.picture}: give a name that ends with {' or '.join(pareto.PICTURES)}")
    if not args.rounds:
        raise ConfigError("--picture: there is no speed to draw with --rounds 0; leave one of them out")
    refuse_output(args.picture, inputs, flag="--picture", makes_parents=True)
    pareto.require_matplotlib()
