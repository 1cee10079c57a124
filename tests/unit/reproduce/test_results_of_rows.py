"""Numbers that were measured otherwise than a row says have a mark, and cells without one say what they need."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bnb_ds.cli import main
from bnb_ds.config.deepspeed import load_ds_config
from bnb_ds.config.loading import dump_recipe, load_recipe
from bnb_ds.errors import CheckpointError
from bnb_ds.evaluate.model import Evaluation
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.reproduce import run_row as running
from bnb_ds.reproduce.effort import effort_of
from bnb_ds.reproduce.listing import listing
from bnb_ds.reproduce.paper_rows import find_row, rows
from bnb_ds.reproduce.paper_tables import table
from bnb_ds.reproduce.reported import reported
from bnb_ds.reproduce.results_of_rows import measured, other_training

REPOSITORY = Path(__file__).resolve().parents[3]
ROW = find_row("xsum/bert2bert")


def save_run(runs, *overrides, ds_overrides=None, **results):
    """A run of `ROW` with a result, trained with overrides of the recipe and of the DeepSpeed configuration."""
    run = runs / ROW.output_dir
    place = run / "best" / "evaluation" / "xsum-test"
    place.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe(ROW.recipe_path, [*ROW.overrides, *overrides, f"output_dir={run}"], FinetuneRecipe)
    (run / "best" / "recipe.yaml").write_text(dump_recipe(recipe))
    values = load_ds_config(ROW.ds_config, world_size=2).values | (ds_overrides or {})
    (run / "ds_config.resolved.json").write_text(json.dumps(values))
    scores = {"rouge1": 38.0, "rouge2": 15.0, "rougeL": 31.4}
    found = {"task": "xsum", "split": "test", "main_score": "rougeL", "scores": scores, **results}
    (place / "eval_results.json").write_text(json.dumps(found))


def differs(runs):
    return list(measured(ROW, runs)["test"].differs)


def line_of(runs, system="BERT2BERT"):
    (line, _) = (line for line in table(2, runs).splitlines() if line.startswith(f"| {system} |"))
    return line


def test_a_run_as_the_row_says_has_no_mark(tmp_path):
    free = ["intervals.log_steps=1", "tracking.loggers=[]", "data.cache_dir=elsewhere", "loader.workers=2"]
    save_run(tmp_path, *free, data_overrides=[], rows=["3 rows read, 3 kept, 0 left out"])
    assert differs(tmp_path) == []
    assert "31.4 |" in line_of(tmp_path)
    assert "*" not in line_of(tmp_path)


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ({"data_overrides": ["data.max_test_samples=3"]}, "scored with data.max_test_samples=3"),
        ({"data_overrides": ["data.test=mine.jsonl"]}, "scored with data.test=mine.jsonl"),
        (
            {"rows": ["3 rows read, 3 kept, 0 left out (ends at data.max_test_samples 3)"]},  # of an older release
            "scored with 3 rows read, 3 kept, 0 left out (ends at data.max_test_samples 3)",
        ),
    ],
)
def test_a_score_of_other_data_has_a_mark(tmp_path, results, said):
    save_run(tmp_path, **results)
    assert differs(tmp_path) == [said]
    assert "31.4* |" in line_of(tmp_path)
    assert f"\n* xsum/bert2bert: {said}." in table(2, tmp_path)
    assert f"\n% * xsum/bert2bert: {said}." in table(2, tmp_path, latex=True)
    assert f"test: rougeL 31.4 (measured; {said})" in listing(tmp_path, 2)


def test_a_score_of_another_training_has_a_mark(tmp_path):
    save_run(tmp_path, "epochs=1", "data.max_train_samples=3", ds_overrides={"train_batch_size": 2})
    usual = load_recipe(ROW.recipe_path, ROW.overrides, FinetuneRecipe)
    batch = load_ds_config(ROW.ds_config, world_size=1).global_batch
    expected = ["data.max_train_samples 3, not none", f"epochs 1.0, not {usual.epochs}"]
    assert differs(tmp_path) == [*expected, f"train_batch_size 2, not {batch}"]
    assert "31.4* |" in line_of(tmp_path)


def test_a_rate_that_the_paper_tries_too_is_the_rows(tmp_path):
    row = find_row("rte/bnb-as-published")
    (tmp_path / row.output_dir).mkdir(parents=True)
    for rate, expected in ((3e-5, []), (1e-3, ["optimizer.params.lr 0.001, not 5e-05"])):
        values = load_ds_config(row.ds_config, world_size=1).values
        values["optimizer"]["params"]["lr"] = rate
        (tmp_path / row.output_dir / "ds_config.resolved.json").write_text(json.dumps(values))
        assert other_training(row, tmp_path / row.output_dir) == expected


def test_a_recipe_of_a_run_that_is_damaged_is_one_line(tmp_path):
    save_run(tmp_path)
    for content, reason in (("[", "while parsing"), ("3", "it is no recipe")):
        (tmp_path / ROW.output_dir / "best" / "recipe.yaml").write_text(content)
        with pytest.raises(CheckpointError, match=rf"recipe.yaml: cannot be read \({reason}.*\); restore it"):
            table(2, tmp_path)


def test_a_row_that_is_run_says_in_what_it_differs(tmp_path, monkeypatch, capsys):
    save_run(tmp_path, "epochs=1")
    (tmp_path / ROW.output_dir / "best" / "task.json").write_text("{}")
    scored = Evaluation(tmp_path, {"scores": {"rougeL": 31.4}})
    monkeypatch.setattr(running, "evaluate_model", lambda *arguments, **settings: scored)
    assert main(["reproduce", "--run", ROW.name, "--runs", str(tmp_path)]) == 0
    assert "  marked in the tables, because it is not as the row says: epochs 1.0, not " in capsys.readouterr().out


def test_a_cell_of_speed_without_a_run_says_what_it_needs(tmp_path):
    hours = f"({effort_of(ROW).short})"
    assert line_of(tmp_path).endswith(f"? / - / {hours} | ? / - / {hours} |")
    save_run(tmp_path)
    assert line_of(tmp_path).endswith("? / - / (to time) | ? / - / (to time) |")
    text = table(2, tmp_path)
    assert "(to time): run here, but not timed; bnb-ds reproduce --time TASK does it." in text
    speed = {"1": {"milliseconds_per_sentence": 7.0}, "32": {"whole_set_seconds": 9.0}}
    of_all = {"split": "test", "device": "CPU", "dtype": "float32", "timed_sentences": 3}
    (tmp_path / "latency" / "xsum").mkdir(parents=True)
    content = json.dumps({"systems": [{"system": ROW.system, "speed": speed}], **of_all})
    (tmp_path / "latency" / "xsum" / "frontier.json").write_text(content)
    assert line_of(tmp_path).endswith("? / - / 7.0 | ? / - / 9.0 |")
    save_run(tmp_path, "model.num_beams=2")
    shutil.rmtree(tmp_path / ROW.output_dir / "best" / "evaluation")
    assert line_of(tmp_path).endswith(f"/ {hours} | ? / - / 7.0* | ? / - / 9.0* |")


def test_the_legend_says_whose_settings_the_measured_numbers_have(tmp_path):
    text = table(3, tmp_path)
    assert 'Rows "as published" run the paper\'s own settings (runs/recipes/paper, ds_configs/paper_*.json)' in text
    assert "the others run recipes of runs/recipes/finetune, whose settings are ours" in text
    assert "below. Rows run recipes of runs/recipes/finetune, whose settings are ours" in table(4, tmp_path)


def test_the_page_on_baselines_names_every_system_without_a_row():
    """It says of each family whether it can be trained here with a recipe of one's own."""
    page = " ".join((REPOSITORY / "docs" / "baselines.md").read_text().split())
    said = page[page.index("Systems that others compare with") : page.index("`bnb-ds reproduce --list` prints a row")]
    own = {(row.table, row.system) for row in rows()}
    names = {entry.system for entry in reported() if (entry.table, entry.system) not in own}
    families = {name.partition(",")[0].partition(" ")[0] for name in names}
    assert families
    assert [family for family in sorted(families) if family not in said] == []
    assert 'the rows "as published" of Tables 1 to 3 run them' in page
