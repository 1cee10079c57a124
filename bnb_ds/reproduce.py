"""``bnb-ds reproduce --list``: the rows of the paper's Tables 1 to 4, what runs each, and the numbers.

A number is *reported* (by the paper, and only where its source could be read), *measured* (from the
``eval_results.json`` of a run here), or *not on record here*. None is filled in from anywhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bnb_ds.errors import DataError
from bnb_ds.tasks import get_task

NOT_ON_RECORD = "not on record here"

_RECIPES = "runs/recipes/finetune"
_DS_CONFIG = "ds_configs/a100_bf16_zero1.json"
_GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
_WMT = ("wmt14_en_de", "wmt14_de_en", "wmt16_en_ro", "wmt16_ro_en")

#: claims of speed whose source could be read: the abstract, and the translation timings of the paper
CLAIMS = (
    ("BnB beside BERT2BERT, average inference speed", "10x", "abstract"),
    ("BnB beside BERT2BERT, translation on a GPU", "2.7x", "its translation timings"),
    ("BnB beside BERT2BERT, translation on a CPU", "2.1x", "its translation timings"),
)


@dataclass(frozen=True)
class Row:
    """One system on one task.

    Attributes:
        table: of the paper.
        task: name of a task.
        system: as in the paper.
        recipe: file under ``runs/recipes/finetune``.
        needs: what has to be there beforehand.
        reported: the paper's number, or None where it is not on record here.
    """

    table: int
    task: str
    system: str
    recipe: str
    needs: str
    reported: str | None = None

    @property
    def output_dir(self) -> str:
        """Of the run; a recipe that serves several tasks gets a directory for each."""
        return f"{Path(self.recipe).stem}_{self.task}" if self._names_task else Path(self.recipe).stem

    @property
    def command(self) -> str:
        more = f" task={self.task} output_dir=work/runs/{self.output_dir}" if self._names_task else ""
        return f"deepspeed runs/finetune.py {_RECIPES}/{self.recipe} --deepspeed_config {_DS_CONFIG}{more}"

    @property
    def _names_task(self) -> bool:
        return self.recipe.startswith(("glue_", "wmt_"))


def rows() -> Iterator[Row]:
    """All rows, table by table."""
    bnb = "an exported BnB of runs/recipes/pretrain/wikipedia_base.yaml"
    for task in _GLUE:
        yield Row(1, task, "BERT", "glue_bert.yaml", "bert-base-cased, nyu-mll/glue")
        yield Row(1, task, "OpenAI GPT", "glue_gpt.yaml", "openai-community/openai-gpt, nyu-mll/glue")
        yield Row(1, task, "BnB", "glue_bnb.yaml", f"{bnb}, nyu-mll/glue")
    yield Row(2, "xsum", "BERT2BERT", "xsum_bert2bert.yaml", "bert-base-cased, EdinburghNLP/xsum")
    yield Row(2, "xsum", "BnB", "xsum_bnb.yaml", f"{bnb}, EdinburghNLP/xsum")
    squad = "rajpurkar/squad and the document lists of Du et al., 2017"
    yield Row(2, "squad_qg", "BERT2BERT", "squad_qg_bert2bert.yaml", f"bert-base-cased, {squad}")
    yield Row(2, "squad_qg", "BnB", "squad_qg_bnb.yaml", f"{bnb}, {squad}")
    for task in _WMT:
        data = f"bert-base-multilingual-cased, wmt/{task[:5]}"
        yield Row(3, task, "Transformer", "wmt_transformer.yaml", f"{data} (random weights, the tokenizer only)")
        yield Row(3, task, "BERT2BERT", "wmt_bert2bert.yaml", data)
        yield Row(3, task, "BnB", "wmt_bnb.yaml", data)
    for task in ("icliniq", "healthcaremagic"):
        data = f"work/data/{task}.jsonl"
        yield Row(4, task, "BART", f"{task}_bart.yaml", f"facebook/bart-base, {data}")
        yield Row(4, task, "BioBART", f"{task}_biobart.yaml", f"GanjinZero/biobart-base, {data}")
        pubmed = "an exported BnB of runs/recipes/pretrain/pubmed_base.yaml"
        yield Row(4, task, "BnB", f"{task}_bnb.yaml", f"{pubmed}, {data}")


def measured(row: Row, runs: Path) -> list[str]:
    """``split: score value`` of every evaluation of a row's run.

    Raises:
        DataError: a file of results cannot be read.
    """
    found = []
    for path in sorted((runs / row.output_dir).glob("best/evaluation/*/eval_results.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["task"] == row.task:
                name = values["main_score"]
                found.append(f"{values['split']}: {name} {values['scores'][name]:.4g} (measured)")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: cannot be read as results ({error}); run bnb-ds evaluate again") from None
    return found


def listing(runs: Path, table: int | None = None) -> str:
    """The rows as text.

    Args:
        runs: directory of the runs, for measured results.
        table: only that one.

    Raises:
        DataError: a file of results cannot be read.
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
    lines += ["", "Speed (bnb-ds bench generate measures it side by side)"]
    lines += [f"  {what}: {number} (reported: {source})" for what, number, source in CLAIMS]
    return "\n".join(lines)
