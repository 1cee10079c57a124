"""``bnb-ds reproduce --list``: the rows of the paper's Tables 1 to 4, with the command and the numbers of each.

A number is *reported* (the paper states it, and its source could be read), *measured* (from the ``eval_results.json``
of a run here), or *not on record here*. Numbers from other sources are never used.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bnb_ds.errors import DataError
from bnb_ds.tasks.registry import get_task

NOT_ON_RECORD = "not on record here"

_PROGRAM = 'deepspeed "$(bnb-ds path finetune)"'
_RECIPES = "runs/recipes/finetune"
_GLUE_BASELINES = {"BERT": "google-bert/bert-base-cased", "OpenAI GPT": "openai-community/openai-gpt"}
_GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
_WMT = ("wmt14_en_de", "wmt14_de_en", "wmt16_en_ro", "wmt16_ro_en")

#: claims of speed whose source could be read: the paper's abstract and its translation timings
CLAIMS = (
    ("BnB against BERT2BERT, average inference speed", "10x", "abstract"),
    ("BnB against BERT2BERT, translation on a GPU", "2.7x", "translation timings"),
    ("BnB against BERT2BERT, translation on a CPU", "2.1x", "translation timings"),
)


@dataclass(frozen=True)
class Row:
    """One system on one task.

    Attributes:
        table: number of the paper's table.
        task: name of the task.
        system: name of the system in the paper.
        recipe: file under ``runs/recipes/finetune``.
        needs: checkpoints and data that the run needs.
        overrides: overrides of the recipe.
        reported: the paper's number; None if it is not on record here.
    """

    table: int
    task: str
    system: str
    recipe: str
    needs: str
    overrides: tuple[str, ...] = ()
    reported: str | None = None

    @property
    def output_dir(self) -> str:
        """The output directory of the run, below ``work/runs``."""
        named = [value.removeprefix("output_dir=work/runs/") for value in self.overrides if "output_dir=" in value]
        return named[0] if named else self.recipe.removesuffix(".yaml")

    @property
    def ds_config(self) -> str:
        return f"ds_configs/finetune_{'glue' if self.table == 1 else 'bf16'}.json"

    @property
    def command(self) -> str:
        more = "".join(f" {shlex.quote(override)}" for override in self.overrides)
        return f"{_PROGRAM} {_RECIPES}/{self.recipe} --deepspeed-config {self.ds_config}{more}"


def rows() -> Iterator[Row]:
    """Yield all rows, table by table."""
    bnb = "work/models/wikipedia_base (an exported run of runs/recipes/pretrain/wikipedia_base.yaml)"
    for task in _GLUE:
        recipe = f"glue/{task}.yaml"
        for system, checkpoint in _GLUE_BASELINES.items():
            name = f"glue_{system.split()[-1].lower()}/{task}"
            model = f"model={{kind: classifier, checkpoint: {checkpoint}}}"
            changes = (model, f"output_dir=work/runs/{name}")
            yield Row(1, task, system, recipe, f"{checkpoint}, nyu-mll/glue", changes)
        yield Row(1, task, "BnB", recipe, f"{bnb}, nyu-mll/glue")
    bert, multilingual = "google-bert/bert-base-cased", "google-bert/bert-base-multilingual-cased"
    yield Row(2, "xsum", "BERT2BERT", "xsum_bert2bert.yaml", f"{bert}, EdinburghNLP/xsum")
    yield Row(2, "xsum", "BnB", "xsum.yaml", f"{bnb}, EdinburghNLP/xsum")
    squad = "rajpurkar/squad, work/data/du2017 (the document lists of Du et al., 2017)"
    yield Row(2, "squad_qg", "BERT2BERT", "squad_qg_bert2bert.yaml", f"{bert}, {squad}")
    yield Row(2, "squad_qg", "BnB", "squad_qg.yaml", f"{bnb}, {squad}")
    for task in _WMT:
        data = f"wmt/{task[:5]}"
        for system, name in (("Transformer", "transformer"), ("BERT2BERT", "bert2bert")):
            changes = (f"task={task}", f"output_dir=work/runs/wmt_{name}/{task}")
            needs = f"{multilingual}{' (its tokenizer)' * (name == 'transformer')}, {data}"
            yield Row(3, task, system, f"wmt_{name}.yaml", needs, changes)
        yield Row(3, task, "BnB", f"{task}.yaml", f"{bert}, {multilingual}, {data}")
    for task in ("icliniq", "healthcaremagic"):
        data = f"work/data/{task}.jsonl"
        yield Row(4, task, "BART", f"{task}_bart.yaml", f"facebook/bart-base, {data}")
        yield Row(4, task, "BioBART", f"{task}_biobart.yaml", f"GanjinZero/biobart-base, {data}")
        pubmed = "work/models/pubmed_base (an exported run of runs/recipes/pretrain/pubmed_base.yaml)"
        yield Row(4, task, "BnB", f"{task}.yaml", f"{pubmed}, {data}")


def measured(row: Row, runs: Path) -> list[str]:
    """List ``split: score value`` for every evaluation of a row's run.

    Raises:
        DataError: a results file cannot be read.
    """
    found = []
    for path in sorted((runs / row.output_dir).glob("best/evaluation/*/eval_results.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["task"] == row.task:
                name = values["main_score"]
                score = values["scores"][name]
                found.append(f"{values['split']}: {name} {'no number' if score is None else f'{score:.4g}'} (measured)")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: cannot be read as results ({error}); run bnb-ds evaluate again") from None
    return found


def listing(runs: Path, table: int | None = None) -> str:
    """Format the rows as text.

    Args:
        runs: directory of the runs, for measured results.
        table: list only this table; None: all.

    Raises:
        DataError: a results file cannot be read.
    """
    lines = []
    current = None
    for row in rows():
        if table not in (None, row.table):
            continue
        if row.table != current:
            current = row.table
            lines += ["", f"Table {current}"] if lines else [f"Table {current}"]
        lines += [
            f"  {get_task(row.task).title}, {row.system}",
            f"    command   {row.command}",
            f"    needs     {row.needs}",
            f"    paper     {f'{row.reported} (reported)' if row.reported else NOT_ON_RECORD}",
            f"    here      {'; '.join(measured(row, runs)) or 'not measured'}",
        ]
    lines += ["", "Speed (bnb-ds bench generate measures both systems side by side)"]
    lines += [f"  {what}: {number} (reported: {source})" for what, number, source in CLAIMS]
    return "\n".join(lines)
