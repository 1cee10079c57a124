"""Classification and regression of a user's own rows: classes of the data or the recipe, one text or two."""

from __future__ import annotations

import json
import re

import pytest

from bnb_ds.config.loading import load_recipe
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.evaluate.scoring import score_labels
from bnb_ds.evaluate.significance import compare
from bnb_ds.finetune.plan import describe_dry_run, make_plan
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.systems.model_dir import load_system, system_and_data
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.examples import read_examples
from bnb_ds.tasks.own_tasks import resolved
from bnb_ds.tasks.registry import get_task

SIZE = "{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64}"


def write(path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def task_of(name: str = "classification", **data):
    section = TaskDataSection(**data)
    return resolved(get_task(name), section), section


def examples(split: str = "train", name: str = "classification", **data):
    task, section = task_of(name, **data)
    return list(read_examples(task, section, split))


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["spam", "ham", "spam"], ("ham", "spam")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["1.5", "10", "2"], ("1.5", "10", "2")),
    ],
)
def test_classes_of_the_data(tmp_path, values, labels):
    train = write(tmp_path / "train.csv", "text,label\n" + "".join(f"text {i},{v}\n" for i, v in enumerate(values)))
    task, _ = task_of(train=train)
    assert task.labels == labels
    assert task.num_outputs == len(labels)
    assert [example.target for example in examples(train=train)] == [labels.index(value) for value in values]


def test_numbers_are_names(tmp_path):
    """Stars from 1 to 3: the label 1 is the class of that name, not the class of that number."""
    rows = [{"text": "a", "label": 3}, {"text": "b", "label": 1.0}, {"text": "c", "label": "2"}]
    train = write(tmp_path / "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert task_of(train=train)[0].labels == ("1", "2", "3")
    assert [example.target for example in examples(train=train)] == [2, 0, 1]


def test_classes_of_the_recipe_keep_their_order(tmp_path):
    train = write(tmp_path / "train.csv", "text,label\na,good\nb,bad\n")
    task, _ = task_of(train=train, labels=["good", "bad", "ugly"])
    assert task.labels == ("good", "bad", "ugly")
    assert [e.target for e in examples(train=train, labels=["good", "bad", "ugly"])] == [0, 1]


def test_two_texts(tmp_path):
    train = write(tmp_path / "train.tsv", "question\tanswer\tright\nwho\tme\tyes\nwhy\tno\tno\n")
    columns = {"text": "question", "text_pair": "answer", "label": "right"}
    first, second = examples(train=train, columns=columns)
    assert (first.sources, first.target) == (("who", "me"), 1)
    assert (second.sources, second.target) == (("why", "no"), 0)
    with pytest.raises(DataError, match="has no column 'label', only question, answer, right"):
        examples(train=train)


def test_regression(tmp_path):
    train = write(tmp_path / "train.csv", "review,stars\nfine,4.5\nbad,-1\n")
    rows = examples(name="regression", train=train, columns={"text": "review", "label": "stars"})
    assert [row.target for row in rows] == [4.5, -1.0]


def test_labels_that_the_training_rows_lack(tmp_path):
    train = write(tmp_path / "train.csv", "text,label\na,ham\nb,spam\n")
    validation = write(tmp_path / "val.csv", "text,label\na,sapm\n")
    message = r"val.csv: line 2: the label 'sapm' is not one of the classes \(did you mean 'spam'\?\); correct it, or"
    with pytest.raises(DataError, match=message):
        examples("validation", train=train, validation=validation)
    assert examples("validation", train=train, validation=validation, skip_bad_rows=True) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "text,label\na,x\nb,x\n",
            r"data.labels: the training rows have one class only \(x\); a classification needs",
        ),
        ("text,label\n", "^data.train: no row has a label, so that there are no classes; give files that have rows$"),
        (
            "text,label\n" + "".join(f"t,{i}\n" for i in range(1001)),
            "data.labels: the training rows have 1,001 different labels, such as '0'; set task: regression for scores",
        ),
        ("text,label\na,x\nb,\n", r"line 3: the label \(label\) is empty; remove the row, or set data.skip_bad_rows"),
        ("text,class\na,x\n", r"has no column 'label', only text, class; give its name with data.columns.label=NAME"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, content, message):
    with pytest.raises((ConfigError, DataError), match=message):
        task_of(train=write(tmp_path / "train.csv", content))


def test_a_label_that_is_no_name(tmp_path):
    train = write(tmp_path / "train.jsonl", '{"text": "a", "label": {"x": 1}}\n')
    with pytest.raises(DataError, match=r"the label \(label\) is a dict, not a name; give its column with"):
        task_of(train=train)


def test_bad_rows_are_left_out_of_the_classes(tmp_path):
    train = write(tmp_path / "train.csv", "text,label\na,x\nb,\nc,y\nd\n")
    assert task_of(train=train, skip_bad_rows=True)[0].labels == ("x", "y")


def test_classes_of_the_hub(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,ham\nb,spam\n")
    assert task_of(hub=str(tmp_path))[0].labels == ("ham", "spam")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("[no, yes]", "data.labels: YAML reads no as False: put the names in quotes"),
        ("[one]", "data.labels: give the names of two or more classes, each once"),
        ("[a, b, a]", "data.labels: give the names of two or more classes, each once"),
        ("[1, '1']", "data.labels: give the names of two or more classes, each once"),
    ],
)
def test_classes_that_a_recipe_cannot_give(tmp_path, labels, message):
    recipe = write(
        tmp_path / "recipe.yaml",
        f"output_dir: out\nsteps: 1\ntask: classification\nmodel: {{kind: bnb}}\ndata: {{labels: {labels}}}\n",
    )
    with pytest.raises(ConfigError) as raised:
        load_recipe(recipe, schema=FinetuneRecipe)
    assert message in str(raised.value)


@pytest.mark.parametrize("name", ["sst2", "summarization", "regression"])
def test_other_tasks_have_classes_of_their_own(name):
    with pytest.raises(ConfigError, match=f"data.labels: task {name} takes none; remove it, or set task: class"):
        resolved(get_task(name), TaskDataSection(labels=["a", "b"]))


@pytest.fixture
def planned(tmp_path, small_tokenizer):
    """A plan of a small classification of pairs."""
    small_tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = "".join(f"text {i},pair {i},{('low', 'middle', 'high')[i % 3]}\n" for i in range(12))
    train = write(tmp_path / "train.csv", f"first,second,grade\n{rows}")
    recipe = write(
        tmp_path / "recipe.yaml",
        f"output_dir: {tmp_path}/out\nsteps: 4\ntask: classification\nmodel: {{kind: bnb, size: {SIZE}}}\n"
        f"data:\n  train: {train}\n  validation: {train}\n  cache_dir: {tmp_path}/cache\n"
        f"  tokenizer: {tmp_path}/tokenizer\n  max_source_length: 32\n"
        "  columns: {text: first, text_pair: second, label: grade}\n",
    )
    ds_config = write(
        tmp_path / "ds.json",
        json.dumps({"train_batch_size": 4, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}),
    )
    return make_plan(recipe, [], ds_config, 1)


def test_a_run_is_planned_and_its_model_knows_its_classes(planned, tmp_path):
    lines = "\n".join(describe_dry_run(planned))
    assert "task         Classification (classification), model kind bnb" in lines
    assert "selection    best accuracy on validation" in lines
    system = planned.system
    system.save_files(system.config(), tmp_path / "model")
    found = load_system(tmp_path / "model")
    assert found.task == planned.task
    assert found.task.labels == ("high", "low", "middle")
    assert found.task.sources == ("text", "text_pair")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "high", "1": "low", "2": "middle"}
    data = ["data.columns={text: a, text_pair: b}"]
    assert system_and_data(tmp_path / "model", "classification", data)[0].task == planned.task
    with pytest.raises(ConfigError, match=re.escape("--task sst2: ")):
        system_and_data(tmp_path / "model", "sst2", [])


def test_macro_f1_against_hand_computed_values():
    import numpy as np

    outputs, references = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 0])
    found = score_labels(("macro_f1",), outputs, references).values["macro_f1"]
    # Class 0: 1 of 2 right, 1 of 2 found; class 1: 1 of 1, 1 of 2; class 2: 2 of 3, 2 of 2.
    assert found == pytest.approx(100 * (0.5 + 2 / 3 + 0.8) / 3)


def test_evaluations_of_own_classes_are_compared(tmp_path):
    for name, outputs in (("first", ["a", "b", "c", "c"]), ("second", ["a", "b", "c", "b"])):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "references.txt", "a\nb\nc\nc\n")
        write(tmp_path / name / "generated_predictions.txt", "".join(f"{output}\n" for output in outputs))
        results = {"task": "classification", "split": "validation", "labels": ["a", "b", "c"], "scores": {}}
        write(tmp_path / name / "eval_results.json", json.dumps(results))
    found = compare(tmp_path / "first", tmp_path / "second", resamples=50)
    assert (found.score, found.first, found.second) == ("accuracy", 100.0, 75.0)
