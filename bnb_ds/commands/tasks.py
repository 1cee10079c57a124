"""The commands ``bnb-ds evaluate``, ``predict``, ``compare``, ``glue``, ``distill`` and ``reproduce``."""

from __future__ import annotations

import argparse
from pathlib import Path

from bnb_ds.common.arguments import add_overrides, positive


def add_evaluate(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds evaluate``."""
    command.add_argument(
        "models", nargs="+", type=Path, metavar="MODEL", help="a run of runs/finetune.py, or an export"
    )
    command.add_argument("--task", help="default: what the model was fine-tuned for")
    command.add_argument("--split", help="default: the task's validation split")
    command.add_argument("--batch-size", type=positive, default=32, help="makes no difference to scores (%(default)s)")
    add_overrides(command, "other data than the model was fine-tuned on, as in a recipe: data.test=FILE")
    command.add_argument("--output", type=Path, help="directory for the results (default: beside the model)")
    command.add_argument("--select", action="store_true", help="name the best of several models; not on a test split")
    command.set_defaults(run=_evaluate)


def add_predict(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds predict``."""
    command.add_argument("model", type=Path, help="a run of runs/finetune.py, or an export")
    command.add_argument("--input", type=Path, required=True, help="rows without labels, in any format of a recipe")
    command.add_argument("--output", type=Path, required=True, help="JSON-lines file, which must not exist yet")
    command.add_argument("--task", help="default: what the model was fine-tuned for")
    command.add_argument("--batch-size", type=positive, default=32, help="makes no difference (%(default)s)")
    add_overrides(command, "how to read the rows, as in a recipe: data.columns={sentence: text}")
    command.set_defaults(run=_predict)


def add_compare(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds compare``."""
    command.add_argument("first", type=Path, help="directory that `bnb-ds evaluate` wrote")
    command.add_argument("second", type=Path, help="another one, of the same data")
    command.add_argument("--score", help="default: the task's main score")
    command.add_argument("--resamples", type=positive, default=1000, help="corpora drawn (default %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the draws (default %(default)s)")
    command.set_defaults(run=_compare)


def add_glue(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds glue``."""
    command.add_argument("recipes", nargs="+", help="one for each task: runs/recipes/finetune/glue/*.yaml")
    command.add_argument("--deepspeed_config", required=True, help="JSON file; shipped ones are under ds_configs/")
    command.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="default %(default)s")
    command.add_argument("--output", type=Path, required=True, help="directory of the runs and of the table")
    command.add_argument("--num_gpus", type=positive, default=1, help="of each run (default %(default)s)")
    add_overrides(command, "replaces a value of all", "KEY=VALUE")
    command.set_defaults(run=_glue)


def _evaluate(args: argparse.Namespace) -> None:
    from bnb_ds.errors import ConfigError
    from bnb_ds.evaluate.model import best_of_evaluations, evaluate_model, refuse_choosing_on_test

    if args.select:
        refuse_choosing_on_test(args.split)
    if args.output is not None and len(args.models) > 1:
        raise ConfigError("--output: several models would write into one directory; leave it out")
    evaluations = {}
    for model in args.models:
        evaluation = evaluate_model(
            model,
            task_name=args.task,
            split=args.split,
            batch_size=args.batch_size,
            overrides=args.overrides,
            output=args.output,
        )
        evaluations[model] = evaluation
        results = evaluation.results
        print(f"evaluate: {model}, {results['task']} {results['split']}, {results['num_samples']:,} samples")
        for line in results["rows"]:
            print(f"  {line}")
        for name, value in evaluation.scores.items():
            settings = results["settings"].get(name, results["settings"].get("rouge") if "rouge" in name else None)
            ceiling = results["ceilings"].get(name)
            beside = [] if ceiling is None else [f"ceiling {ceiling:.2f}"]
            beside += [] if settings is None else [settings]
            print(f"  {name:22} {value:10.4f}{'  (' * bool(beside)}{'; '.join(beside)}{')' * bool(beside)}")
        print(f"  written to {evaluation.directory}")
    if args.select:
        print(f"best: {best_of_evaluations(evaluations)}")


def _predict(args: argparse.Namespace) -> None:
    from bnb_ds.evaluate.predict import predict

    lines = predict(
        args.model,
        args.input,
        args.output,
        task_name=args.task,
        batch_size=args.batch_size,
        overrides=args.overrides,
    )
    print("\n".join(lines))


def _compare(args: argparse.Namespace) -> None:
    from bnb_ds.evaluate.significance import compare

    print(compare(args.first, args.second, score=args.score, resamples=args.resamples, seed=args.seed))


def _glue(args: argparse.Namespace) -> None:
    from bnb_ds.finetune.glue import run_glue

    table = run_glue(
        args.recipes,
        args.overrides,
        args.deepspeed_config,
        seeds=args.seeds,
        output=args.output,
        num_gpus=args.num_gpus,
    )
    print(table, end="")


def add_distill(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds distill``."""
    command.add_argument("teacher", type=Path, help="a run of runs/finetune.py, or an export")
    command.add_argument("--output", type=Path, required=True, help="JSON-lines file, for data.train of a recipe")
    command.add_argument("--task", help="default: what the teacher was fine-tuned for")
    add_overrides(command, "other data than the teacher was fine-tuned on, as in a recipe: data.train=FILE")
    command.add_argument("--num-beams", type=positive, help="default: as the teacher was fine-tuned with")
    command.add_argument(
        "--batch-tokens", type=positive, default=8192, help="source tokens x beams at once (default %(default)s)"
    )
    command.add_argument("--window", type=positive, default=2048, help="examples sorted together (default %(default)s)")
    command.add_argument("--resume", action="store_true", help="go on with an unfinished output")
    command.add_argument("--task-index", type=int, default=0, help="which share of the examples, from 0")
    command.add_argument(
        "--num-tasks", type=positive, default=1, help="shares; each writes OUTPUT.00000-of-00004 and so on"
    )
    command.set_defaults(run=_distill)


def add_reproduce(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds reproduce``."""
    command.add_argument("--list", action="store_true", required=True, help="print the rows")
    command.add_argument("--table", type=int, choices=(1, 2, 3, 4), help="only that table")
    command.add_argument(
        "--runs", type=Path, default=Path("work/runs"), help="where measured results lie (default %(default)s)"
    )
    command.set_defaults(run=_reproduce)


def _distill(args: argparse.Namespace) -> None:
    from bnb_ds.finetune.distillation import DistillJob, distill

    job = DistillJob(
        args.teacher,
        args.output,
        task_name=args.task,
        overrides=args.overrides,
        num_beams=args.num_beams,
        batch_tokens=args.batch_tokens,
        task_index=args.task_index,
        num_tasks=args.num_tasks,
        window=args.window,
        resume=args.resume,
    )
    print(distill(job))


def _reproduce(args: argparse.Namespace) -> None:
    from bnb_ds.evaluate.reproduce import listing

    print(listing(args.runs, args.table))
