"""The list of the paper's rows: every command works, and every number has a source."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from bnb_ds.cli import main
from bnb_ds.config.loading import load_recipe
from bnb_ds.errors import DataError
from bnb_ds.evaluate.reproduce import NOT_ON_RECORD, listing, measured, rows
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.systems.kinds import system_class

REPOSITORY = Path(__file__).resolve().parents[3]
RECIPES = REPOSITORY / "runs" / "recipes" / "finetune"


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: f"{row.table}-{row.task}-{row.system}")
def test_every_row_has_a_recipe(row):
    _, program, recipe_path, _, ds_config, *overrides = shlex.split(row.command)
    assert program == "$(bnb-ds path finetune)"
    assert (REPOSITORY / ds_config).is_file()
    recipe = load_recipe(REPOSITORY / recipe_path, overrides, FinetuneRecipe)
    assert recipe.task == row.task
    assert recipe.output_dir == f"work/runs/{row.output_dir}"
    assert system_class(recipe.model.kind, recipe.declared_task)


def test_rows_write_into_different_directories():
    directories = [row.output_dir for row in rows()]
    assert len(set(directories)) == len(directories)


def test_measured_results_are_read_and_labelled(tmp_path):
    row = next(row for row in rows() if row.recipe == "xsum_bert2bert.yaml")
    assert measured(row, tmp_path) == []
    assert "here      not measured" in listing(tmp_path, 2)
    folder = tmp_path / "xsum_bert2bert" / "best" / "evaluation" / "xsum-test"
    folder.mkdir(parents=True)
    results = {"task": "xsum", "split": "test", "main_score": "rougeL", "scores": {"rougeL": 31.4159}}
    (folder / "eval_results.json").write_text(json.dumps(results))
    assert "here      test: rougeL 31.42 (measured)" in listing(tmp_path)
    (folder / "eval_results.json").write_text(json.dumps({**results, "scores": {"rougeL": None}}))
    assert "here      test: rougeL no number (measured)" in listing(tmp_path)
    (folder / "eval_results.json").write_text("{}")
    with pytest.raises(DataError, match=r"eval_results.json: cannot be read as results .*run bnb-ds evaluate again"):
        listing(tmp_path)


def test_the_command_lists_tables(tmp_path, capsys):
    assert main(["reproduce", "--list", "--table", "3", "--runs", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "Table 3" in text
    assert "Table 1" not in text
    assert "WMT14 en-de, Transformer" in text
    assert NOT_ON_RECORD in text
    assert "2.7x (reported: translation timings)" in text


def test_rows_of_one_task_read_the_same_data():
    by_task: dict[str, list[dict]] = {}
    for row in rows():
        recipe = load_recipe(RECIPES / row.recipe, row.overrides, FinetuneRecipe)
        data = recipe.data.model_dump(exclude={"tokenizer", "target_tokenizer"})
        by_task.setdefault(row.task, []).append(data)
    for task, data in by_task.items():
        assert all(values == data[0] for values in data), task
