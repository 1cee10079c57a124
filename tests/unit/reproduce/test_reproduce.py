"""The list of the paper's rows: every command works, and every number has a source."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import pytest

from bnb_ds.cli import main
from bnb_ds.config.loading import load_recipe
from bnb_ds.errors import DataError
from bnb_ds.evaluate.model import Evaluation
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.reproduce import run_row as running
from bnb_ds.reproduce.effort import Effort, effort_of
from bnb_ds.reproduce.listing import NOT_ON_RECORD, listing
from bnb_ds.reproduce.paper_rows import COLUMNS, find_row, rows
from bnb_ds.reproduce.paper_tables import table
from bnb_ds.reproduce.reported import PAPER, PAPER_ADDRESS, reported
from bnb_ds.reproduce.results_of_rows import measured
from bnb_ds.systems.kinds import system_class
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.examples import hub_of, reads_file
from bnb_ds.tasks.registry import get_task
from tests.exports import save_task_model

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: row.name)
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
    assert measured(row, tmp_path) == {}
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


#: what the paper's settings of the data have otherwise: all answers, another cut, other lengths
PAPERS_OWN_DATA = {"columns", "cut", "max_source_length", "max_target_length"}


def test_rows_of_one_task_read_the_same_data():
    by_task: dict[str, list[dict]] = {}
    for row in rows():
        data = load_recipe(REPOSITORY / row.recipe_path, row.overrides, FinetuneRecipe).data
        differs = {"tokenizer", "target_tokenizer"} | (PAPERS_OWN_DATA if row.is_as_published else set())
        differs |= {"train", "hub"} if row.published_system.endswith(" dist.") else set()
        by_task.setdefault(row.task, []).append(data.model_dump(exclude=differs))
    for task, data in by_task.items():
        assert all(values == {name: data[0][name] for name in values} for values in data), task


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: row.name)
def test_every_row_has_rows_for_each_split_it_reads(row):
    recipe = load_recipe(REPOSITORY / row.recipe_path, row.overrides, FinetuneRecipe)
    task = recipe.declared_task
    for split in ("train", *task.validation_splits, row.split):
        if not reads_file(recipe.data, split):
            hub, name = hub_of(task, recipe.data, split)
            assert name
            assert hub.name == task.hub.name
    if row.published_system.endswith(" dist."):
        assert reads_file(recipe.data, "train")
        assert f"--output {recipe.data.train}" in row.needs


def test_rows_as_published_have_the_papers_settings_and_the_papers_numbers(tmp_path):
    published = [row for row in rows() if row.is_as_published]
    assert {(row.table, row.published_system) for row in published} == {
        (1, "BnB"),
        *((2, system) for system in ("BnB", "BnB without additional pre-training")),
        *((3, system) for system in ("BnB random", "BnB mBERT", "BnB mBERT dist.")),
    }
    ours = {(row.task, row.system) for row in rows()}
    for row in published:
        assert (row.task, row.published_system) in ours
        assert Path(row.recipe_path).parent.name == "paper"
        assert row.ds_config.startswith("ds_configs/paper_")
        assert row.name.endswith("-as-published")
        model = load_recipe(REPOSITORY / row.recipe_path, row.overrides, FinetuneRecipe).model
        assert (model.loss_reduction, model.kl_weight) == ("sample", 0.1) or row.table == 1
        # the slots of a pre-trained model are saved with it
        assert model.checkpoint or model.decoder_positions == "absolute"
    recipe = load_recipe(REPOSITORY / find_row("qqp/bnb-as-published").recipe_path, (), FinetuneRecipe)
    assert (recipe.seed, recipe.intervals.eval_steps) == (99, 250)
    overrides = find_row("qqp/bnb-as-published").overrides
    assert overrides[:3] == ("task=qqp", "intervals.eval_steps=20000", "seed=66")
    for number in (1, 2, 3):
        text = table(number, tmp_path)
        assert all(f"{row.note}." in text for row in rows() if row.table == number and row.note)
        for row in (row for row in published if row.table == number):
            own, other = (_cells(text, row.task, system) for system in (row.system, row.published_system))
            assert [cell.split(" / ")[:2] for cell in own] == [cell.split(" / ")[:2] for cell in other]


def test_rows_have_names_of_their_own():
    names = [row.name for row in rows()]
    assert len(set(names)) == len(names)
    assert find_row("wmt14_en_de/bnb-mbert-dist").overrides[0] == "data.train=work/data/wmt14_en_de.distilled.jsonl"


def test_every_recorded_number_has_its_table_row_and_column(tmp_path):
    tables = {number: table(number, tmp_path) for number in (1, 2, 3, 4)}
    runnable = {(row.table, row.task, row.system) for row in rows()}
    tasks = {(number, task) for number, task, _ in runnable}
    places = [(entry.table, entry.task, entry.system, entry.column, entry.source == PAPER) for entry in reported()]
    assert len(set(places)) == len(places)
    for entry in reported():
        assert (entry.table, entry.task) in tasks
        assert entry.column in COLUMNS[entry.task]
        assert (entry.table, entry.task, entry.system) in runnable or entry.source != PAPER
        cells = _cells(tables[entry.table], entry.task, entry.system)
        cell = cells[COLUMNS[entry.task].index(entry.column)].split(" / ")
        assert cell[0 if entry.source == PAPER else 1] == f"{entry.value:g}"
        assert entry.source == PAPER or f"Elsewhere: {entry.source}." in tables[entry.table]
    numbers = sum(cell not in ("?", "-") for row in _rows_of(tables) for cell in row)
    assert numbers == len(places)


def _rows_of(tables: dict[int, str]) -> list[list[str]]:
    """The paper's and the others' number of every cell; rows as published show those of another row again."""
    found = []
    for text in tables.values():
        lines = [line for line in text.partition("Each cell:")[0].splitlines() if ", as published |" not in line]
        for line in lines:
            cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
            found += [cell.split(" / ")[:2] for cell in cells if cell.count(" / ") == 2]
    return found


def _cells(text: str, task: str, system: str) -> list[str]:
    (part,) = (part for part in text.split("Table ") if part[3:].startswith(f"{get_task(task).title}\n"))
    (line,) = (line for line in part.splitlines() if line.startswith(f"| {system} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_every_row_stands_in_its_table(number, tmp_path):
    for latex in (False, True):
        text = table(number, tmp_path, latex=latex)
        for row in rows():
            assert (f"{row.system} " in text) or row.table != number
    assert text.count("\\begin{tabular}") == len({row.task for row in rows() if row.table == number})
    assert f"{sum(row.table == number for row in rows())} rows were not run here" in text
    assert PAPER_ADDRESS in text
    for row in rows():
        if row.table == number:
            effort = effort_of(row)
            assert f"| {row.name} | {effort.steps:,} x {effort.samples:,} | {effort.short} | {row.needs} |" in text


def test_a_measured_score_stands_in_its_cell(tmp_path):
    row = find_row("cola/bert")
    folder = tmp_path / row.output_dir / "best" / "evaluation" / "cola-validation"
    folder.mkdir(parents=True)
    results = {"task": "cola", "split": "validation", "main_score": "matthews_correlation"}
    (folder / "eval_results.json").write_text(json.dumps({**results, "scores": {"matthews_correlation": 0.5731}}))
    assert _cells(table(1, tmp_path), "cola", "BERT") == ["? / 56.53 / 57.3"]
    hours = f"({effort_of(find_row('xsum/nat')).short})"
    first, *_, speed, _ = _cells(table(2, tmp_path), "xsum", "NAT")
    assert (first, speed) == (f"24.04 / 24.04 / {hours}", f"? / - / {hours}")
    assert "PreDAT & - / 38.8 / - & " in table(2, tmp_path, latex=True)


def test_the_effort_of_a_row_is_that_of_its_recipe():
    """By hand: 3 epochs of 8,551 sentences of 64 tokens, 12 layers of 768 numbers; forward, and twice that backward."""
    effort = effort_of(find_row("cola/bert"))
    assert (effort.steps, effort.samples) == (math.ceil(3 * 8551 / 32), 32)
    tokens, width = 64, 768
    layer = 2 * tokens * (4 * width * width + 2 * width * 4 * width) + 4 * tokens * tokens * width
    flops = 3 * (12 * layer + 2 * width * 2)
    assert effort.hours == pytest.approx(802 * 32 * flops / (0.4 * 19.5e12) / 3600)
    hours = {name: effort_of(find_row(f"xsum/{name}")).hours for name in ("nat", "inat", "bnb", "bert2bert", "bart")}
    assert hours["nat"] < hours["inat"] < hours["bart"] < hours["bert2bert"] < hours["bnb"]
    # 512 slots: written in the row, or saved with the pre-trained model that it begins with
    for task in ("xsum", "squad_qg"):
        assert effort_of(find_row(f"{task}/bnb-as-published")).hours == pytest.approx(
            effort_of(find_row(f"{task}/bnb-without-additional-pre-training-as-published")).hours
        )


@pytest.mark.parametrize(("hours", "short"), [(0.001, "1 min"), (0.26, "16 min"), (3.04, "3.0 h"), (1234.5, "1,234 h")])
def test_hours_are_short(hours, short):
    assert Effort(1, 1, hours).short == short


@pytest.fixture
def timed(small_tokenizer, tmp_path):
    """Runs of two rows of XSum, untrained, on three summaries."""
    data = tmp_path / "rows.jsonl"
    texts = ("the value of the object", "a class of objects", "it is")
    data.write_text(
        "".join(json.dumps({"id": str(i), "document": t, "summary": t}) + "\n" for i, t in enumerate(texts))
    )
    settings = {"data": {"test": str(data), "cache_dir": str(tmp_path / "cache")}}
    for name, target in (("xsum/bnb", "ctc"), ("xsum/nat", "dag")):
        best = tmp_path / find_row(name).output_dir / "best"
        save_task_model(best, "xsum", Codec(small_tokenizer, small_tokenizer), decoder_length_ratio=2.0, target=target)
        (best / "recipe.yaml").write_text(json.dumps(settings))
    return tmp_path


@pytest.mark.slow
def test_latencies_are_measured_together_and_stand_in_the_table(timed, capsys):
    assert main(["reproduce", "--time", "xsum", "--runs", str(timed)]) == 0
    capsys.readouterr()
    text = table(2, timed)
    for system in ("BnB", "NAT"):
        *_, milliseconds, seconds = _cells(text, "xsum", system)
        # with a mark, because these models were trained otherwise than their rows
        assert float(milliseconds.removeprefix("? / - / ").removesuffix("*")) > 0
        assert float(seconds.removeprefix("? / - / ").removesuffix("*")) >= 0
        assert milliseconds[-1] == seconds[-1] == "*"
    assert "* xsum/nat: " in text
    assert "Speed here, xsum: 3 sentences of test, CPU, " in text
    assert "Speed here, xsum: 3 sentences of test, CPU, " in table(2, timed, latex=True)
    (timed / "latency" / "xsum" / "frontier.json").write_text("{}")
    with pytest.raises(DataError, match=r"frontier.json: cannot be read .*; run bnb-ds reproduce --time xsum again"):
        table(2, timed)


def test_what_cannot_be_timed_is_told(tmp_path, capsys):
    assert main(["reproduce", "--time", "xsun", "--runs", str(tmp_path)]) == 2
    assert "--time xsun: no table has the speed of such a task; did you mean 'xsum'?" in capsys.readouterr().err
    assert main(["reproduce", "--time", "cola", "--runs", str(tmp_path)]) == 2
    assert "--time cola: no table has the speed of such a task" in capsys.readouterr().err
    assert main(["reproduce", "--time", "xsum", "--runs", str(tmp_path)]) == 2
    assert f"--time xsum: no row of it was run below {tmp_path}; run one with bnb-ds" in capsys.readouterr().err


def test_a_row_is_trained_once_and_evaluated(tmp_path, monkeypatch, capsys):
    """The launcher itself runs in the tests of `bnb-ds glue`; here what it is given is looked at."""
    launched, evaluated = [], []

    def launch(*arguments):
        launched.append(arguments)
        best = tmp_path / "glue_bert" / "rte" / "best"
        best.mkdir(parents=True)
        (best / "task.json").write_text("{}")
        return 0

    def evaluate(directory, split):
        evaluated.append((directory, split))
        return Evaluation(directory, {"scores": {"accuracy": 66.43, "loss": None}})

    monkeypatch.setattr(running, "run_finetuning", launch)
    monkeypatch.setattr(running, "evaluate_model", evaluate)
    command = ["reproduce", "--run", "rte/bert", "--runs", str(tmp_path)]
    assert main([*command, "--set", "epochs=1"]) == 0
    assert main(command) == 0
    settings = [
        "model={kind: classifier, checkpoint: google-bert/bert-base-cased}",
        "epochs=1",
        f"output_dir={tmp_path / 'glue_bert/rte'}",
    ]
    assert launched == [("runs/recipes/finetune/glue/rte.yaml", settings, "ds_configs/finetune_glue.json", 1)]
    assert evaluated == [(tmp_path / "glue_bert" / "rte", "validation")] * 2
    assert "rte/bert: accuracy 66.43; " in capsys.readouterr().out
    for change in (["--set", "epochs=2"], ["--deepspeed-config", "other.json"]):
        assert main([*command, *change]) == 2
        assert f"{' '.join(change)}: rte/bert is trained already in {tmp_path}" in capsys.readouterr().err
    assert (len(launched), len(evaluated)) == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--list --latex", "--latex with --list: has no effect there; leave one of them out"),
        ("--list --run xsum/bnb", "--list with --run: has no effect there"),
        ("--table 4 --set epochs=1 --num-gpus 3", "--num-gpus with --table: has no effect there"),
        ("--table 4 --deepspeed-config x.json", "--deepspeed-config with --table: has no effect there"),
        ("--time xsum --set epochs=1", "--set with --time: has no effect there"),
        ("--run xsum/bnb --table 2", "--table with --run: has no effect there"),
        ("--run xsum/bnb --time xsum", "--time with --run: has no effect there"),
        ("--latex", "give --table NUMBER, --list, --run ROW or --time TASK"),
        ("--run xsum/bnb --set output_dir=x", "--set output_dir=x: xsum/bnb decides output_dir; give --runs DIRECTORY"),
        ("--run xsum/bnb --set task=rte", "--set task=rte: xsum/bnb decides task; give the row of that task to --run"),
    ],
)
def test_an_option_without_effect_is_refused(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(running, "run_finetuning", lambda *arguments: 2)
    assert main(["reproduce", *arguments.split(), "--runs", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_row_that_fails_says_what_it_needs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running, "run_finetuning", lambda *arguments: 2)
    assert main(["reproduce", "--run", "xsum/nat", "--runs", str(tmp_path)]) == 2
    assert "xsum/nat: fine-tuning ended with exit code 2; see above" in capsys.readouterr().err


def test_an_unknown_row_is_named_with_the_nearest(capsys):
    assert main(["reproduce", "--run", "xsum/bert2bret"]) == 2
    assert "--run xsum/bert2bret: no such row; did you mean 'xsum/bert2bert'?" in capsys.readouterr().err
    assert main(["reproduce"]) == 2
    assert "give --table NUMBER, --list, --run ROW or --time TASK" in capsys.readouterr().err
