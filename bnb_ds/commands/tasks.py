"""The commands ``bnb-ds evaluate``, ``predict``, ``compare``, ``glue`` and ``distill``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bnb_ds.common.arguments import add_overrides, add_overwrite, describe, natural, positive
from bnb_ds.common.empty_outputs import empty_warning
from bnb_ds.errors import CONTINUE, CONTINUE_WITH_RESUME


def add_evaluate(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds evaluate``."""
    describe(
        command,
        "Run models on one split of a task, and write outputs and scores.",
        "bnb-ds evaluate work/runs/xsum --split test",
    )
    command.add_argument(
        "models", nargs="+", type=Path, metavar="MODEL", help="output_dir of a fine-tuning run, or an exported model"
    )
    command.add_argument("--task", help="task to evaluate (default: the task of the fine-tuning)")
    command.add_argument("--split", help="split to evaluate (default: the task's first validation split)")
    command.add_argument(
        "--batch-size",
        type=positive,
        default=32,
        help="samples decoded together; it does not change the scores (default %(default)s)",
    )
    add_overrides(command, "replace a data setting of the fine-tuning recipe, for example data.test=FILE; repeatable")
    command.add_argument(
        "--output",
        type=Path,
        help="directory for the results (default: MODEL/evaluation/TASK-SPLIT, where they replace earlier ones)",
    )
    add_overwrite(command)
    for flag, kind in (
        ("--length-beam", positive),
        ("--refinement", natural),
        ("--exit-entropy", float),
        ("--blank-penalty", float),
    ):
        command.add_argument(
            flag, type=kind, metavar="N", help="as for `bnb-ds generate` (default: what the model was saved with)"
        )
    command.add_argument(
        "--oracle-length",
        action="store_true",
        help="give each output the length of its reference, as some published scores do; the results have a directory"
        " of their own beside the honest ones",
    )
    command.add_argument(
        "--select", action="store_true", help="name the best of several models; refused on a test split"
    )
    command.set_defaults(run=_evaluate)


def add_predict(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds predict``."""
    describe(
        command,
        "Write labels with probabilities, or texts, for rows that have none.",
        "bnb-ds predict work/runs/glue/sst2 --input rows.jsonl --output predicted.jsonl",
    )
    command.add_argument("model", type=Path, help="output_dir of a fine-tuning run, or an exported model")
    command.add_argument("--input", type=Path, required=True, help="rows without labels, in any format of a recipe")
    command.add_argument("--output", type=Path, required=True, help="JSON-lines file, which must not exist yet")
    command.add_argument("--task", help="default: what the model was fine-tuned for")
    command.add_argument(
        "--batch-size",
        type=positive,
        default=32,
        help="rows of a batch; it does not change the outputs (default %(default)s)",
    )
    add_overrides(command, "how to read the rows, as in a recipe: data.columns={sentence: text}")
    command.set_defaults(run=_predict)


def add_compare(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds compare``."""
    describe(
        command,
        "Compare two evaluations of the same split by the paired bootstrap test (Koehn, 2004).",
        "bnb-ds compare work/runs/xsum work/runs/xsum_bert2bert",
    )
    command.add_argument(
        "first", type=Path, help="directory that `bnb-ds evaluate` wrote, or an evaluated run or model"
    )
    command.add_argument("second", type=Path, help="another one, for the same data; of runs, the newest evaluations")
    command.add_argument("--score", help="score to compare (default: the task's main score)")
    command.add_argument("--resamples", type=positive, default=1000, help="samples to draw (default %(default)s)")
    command.add_argument("--seed", type=natural, default=0, help="seed of the draws (default %(default)s)")
    command.set_defaults(run=_compare)


def add_glue(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds glue``."""
    describe(
        command,
        "Fine-tune on every task with every seed, skip finished runs, and write a table with the best score,\n"
        "the mean and standard deviation of each task, and the average over tasks.",
        "bnb-ds glue runs/recipes/finetune/glue/*.yaml --deepspeed-config ds_configs/finetune_glue.json"
        " --output work/runs/glue",
    )
    command.add_argument(
        "recipes",
        nargs="+",
        help="one recipe per task: files, or names and patterns of shipped ones",
    )
    command.add_argument(
        "--deepspeed-config", required=True, metavar="JSON", help="JSON file, or the name of a shipped one"
    )
    command.add_argument(
        "--seeds", type=natural, nargs="+", default=[1, 2, 3, 4, 5], help="seeds of the runs (default %(default)s)"
    )
    command.add_argument("--output", type=Path, required=True, help="directory for the runs and the table")
    command.add_argument(
        "--learning-rates",
        type=float,
        nargs="+",
        default=[],
        metavar="RATE",
        help="try these on validation with the first seed, and take the best one for each task; BERT tried 2e-5,"
        " 3e-5, 4e-5 and 5e-5 (default: that of the DeepSpeed JSON)",
    )
    command.add_argument("--num-gpus", type=positive, default=1, help="GPUs of each run (default %(default)s)")
    add_overrides(command, "replace a value in all recipes; repeatable", "KEY=VALUE")
    command.set_defaults(run=_glue, next_step=CONTINUE)


def _evaluate(args: argparse.Namespace) -> None:
    from bnb_ds.errors import ConfigError
    from bnb_ds.evaluate.model import best_of_evaluations, evaluate_model, refuse_choosing_on_test
    from bnb_ds.model.settings_rules import DECODING

    if args.select:
        refuse_choosing_on_test(args.split)
        if args.oracle_length:
            raise ConfigError(
                "--oracle-length with --select: no user of a model knows the lengths of the references, so a model must"
                " not be chosen by such scores; leave one of them out"
            )
    if args.output is not None and len(args.models) > 1:
        raise ConfigError("--output: several models cannot write into one directory; leave it out")
    decoding = {name: getattr(args, name) for name in DECODING if getattr(args, name) is not None}
    evaluations = {}
    for model in args.models:
        evaluation = evaluate_model(
            model,
            task_name=args.task,
            split=args.split,
            batch_size=args.batch_size,
            overrides=args.overrides,
            output=args.output,
            oracle_length=args.oracle_length,
            overwrite=args.overwrite,
            decoding=decoding,
        )
        evaluations[model] = evaluation
        results = evaluation.results
        print(f"evaluate: {model}, {results['task']} {results['split']}, {results['num_samples']:,} samples")
        for line in results["rows"]:
            print(f"  {line}")
        if results.get("oracle_length"):
            print("  outputs have the true length of their references (--oracle-length)")
        for name, value in evaluation.scores.items():
            settings = results["settings"].get(name, results["settings"].get("rouge") if "rouge" in name else None)
            ceiling = results["ceilings"].get(name)
            beside = [] if ceiling is None else [f"ceiling {ceiling:.2f}"]
            beside += [] if settings is None else [settings]
            if name == "loss" and results["loss_samples"] < results["num_samples"]:
                beside.append(f"over {results['loss_samples']:,} samples, whose targets fit into the decoder's slots")
            print(f"  {name:22} {value:10.4f}{'  (' * bool(beside)}{'; '.join(beside)}{')' * bool(beside)}")
        print(f"  written to {evaluation.directory}")
        if warning := empty_warning(evaluation.num_empty, results["num_samples"]):
            print(warning, file=sys.stderr)
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
    from bnb_ds.evaluate.newest import newest_pair
    from bnb_ds.evaluate.significance import compare

    first, second = newest_pair(args.first, args.second)
    if (first, second) != (args.first, args.second):
        print(f"{first} -> {second}")
    print(compare(first, second, score=args.score, resamples=args.resamples, seed=args.seed))


def _glue(args: argparse.Namespace) -> None:
    from bnb_ds.finetune.glue import run_glue

    table = run_glue(
        args.recipes,
        args.overrides,
        args.deepspeed_config,
        seeds=args.seeds,
        output=args.output,
        num_gpus=args.num_gpus,
        learning_rates=args.learning_rates,
    )
    print(table, end="")


def add_distill(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds distill``."""
    describe(
        command,
        "Replace the targets of the training split by the outputs of an autoregressive teacher (distillation).",
        "bnb-ds distill work/runs/multi30k_teacher --output work/multi30k/train.distilled.jsonl",
    )
    command.add_argument("teacher", type=Path, help="output_dir of a fine-tuning run, or an exported model")
    command.add_argument(
        "--output", type=Path, required=True, help="JSON-lines file to write, for data.train of a recipe"
    )
    command.add_argument("--task", help="task of the data (default: the task of the teacher's fine-tuning)")
    add_overrides(command, "replace a data setting of the teacher's recipe, for example data.train=FILE; repeatable")
    command.add_argument("--num-beams", type=positive, help="beams of the teacher (default: those of its recipe)")
    command.add_argument(
        "--batch-tokens",
        type=positive,
        default=8192,
        help="most source tokens times beams of a batch (default %(default)s)",
    )
    command.add_argument(
        "--window",
        type=positive,
        default=2048,
        help="examples that are sorted by length together (default %(default)s)",
    )
    command.add_argument("--resume", action="store_true", help="continue an unfinished output (default: refuse it)")
    add_overwrite(command)
    command.add_argument(
        "--task-index", type=int, default=0, help="number of the share to do, from 0 (default %(default)s)"
    )
    command.add_argument(
        "--num-tasks",
        type=positive,
        default=1,
        help="number of shares; with several, each writes OUTPUT.00000-of-00004 and so on (default %(default)s)",
    )
    command.set_defaults(run=_distill, next_step=CONTINUE_WITH_RESUME)


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
        overwrite=args.overwrite,
    )
    print(distill(job))
