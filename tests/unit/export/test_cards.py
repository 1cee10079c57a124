"""The Python example of a model's README runs, and gives what the commands give."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from bnb_ds.export.finetuned import export_task_model
from bnb_ds.export.model_card import hub_data, metadata, results, without_paths
from bnb_ds.export.pretrained import export_pretrained_model
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.systems.model_dir import load_system
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.registry import get_task
from tests.exports import save_model, save_task_model


@pytest.fixture
def run(tmp_path):
    """The records of a run; a test writes ``model``."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.resolved.yaml").write_text("selection: {split: validation}\nobjective: {corruption: mlm}\n")
    launch = {"command": ["x"], "data_fingerprint": "f", "git_revision": None, "world_size": 1, "python": "3"}
    (folder / "launches.jsonl").write_text(json.dumps({**launch, "packages": {"torch": "2"}}) + "\n")
    return folder


def run_example(model, monkeypatch, capsys) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (model / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(model)
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    return capsys.readouterr().out


@pytest.mark.parametrize("task", ["translation", "squad_qg"])
def test_a_fine_tuned_model(run, task, small_tokenizer, other_tokenizer, tmp_path, monkeypatch, capsys):
    target = other_tokenizer if task == "translation" else small_tokenizer
    save_task_model(run / "model", task, Codec(small_tokenizer, target))
    weights = BnbForConditionalGeneration.from_pretrained(run / "model").state_dict()
    export_task_model(run, run / "step_00000001", tmp_path / "out", weights)
    text = "A text for source." if task == "translation" else "A text for answers.text.0.\tA text for context."
    expected = BnbPipeline.from_pretrained(run / "model")([text])
    assert expected[0]
    assert run_example(tmp_path / "out", monkeypatch, capsys) == f"{expected}\n"


def test_a_model_of_labels(run, small_tokenizer, tmp_path):
    save_task_model(run / "model", "sst2", Codec(small_tokenizer, small_tokenizer))
    weights = load_system(run / "model").load(run / "model").state_dict()
    export_task_model(run, run / "step_00000001", tmp_path / "out", weights)
    assert (
        "`bnb-ds predict . --input rows.jsonl --output outputs.jsonl`" in (tmp_path / "out" / "README.md").read_text()
    )


@pytest.mark.parametrize("encoder_only", [False, True])
def test_a_pretrained_model(run, encoder_only, small_tokenizer, tmp_path, monkeypatch, capsys):
    save_model(run / "model", small_tokenizer)
    weights = BnbForConditionalGeneration.from_pretrained(run / "model").state_dict()
    export_pretrained_model(run, run / "step_00000001", tmp_path / "out", encoder_only=encoder_only, weights=weights)
    said = run_example(tmp_path / "out", monkeypatch, capsys)
    if encoder_only:
        assert said.startswith("torch.Size([1, ")
    else:
        assert said == f"{BnbPipeline.from_pretrained(run / 'model')(['A sentence with a [MASK] word.'])}\n"


@pytest.fixture
def found(run):
    """A checkpoint of the run, which was started by somebody on a machine of theirs."""
    recipe = {
        "task": "xsum",
        "model": {
            "kind": "bnb",
            "checkpoint": "somebody/bnb-base",
            "encoder": str(run),
            "decoder": "/home/me/b.d/bert",
        },
        "data": {"train": "/home/me/my data/train.jsonl", "columns": {"document": "a/b"}, "cache_dir": "~/cache"},
        "selection": {"split": "validation"},
        "output_dir": "/scratch/me/runs/xsum",
    }
    (run / "config.resolved.yaml").write_text(yaml.safe_dump(recipe))
    command = ["finetune.py", "--recipe", "/home/me/xsum.yaml", "data.train=/home/me/my data/train.jsonl"]
    launch = json.loads((run / "launches.jsonl").read_text()) | {"command": command}
    (run / "launches.jsonl").write_text(json.dumps(launch) + "\n")
    rows = [{"step": 1, "validation/rougeL": 20.5, "validation/loss": 3.0, "validation/rouge1": None}, {"step": 2}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run / "checkpoints" / "step_00000001"


def export_xsum(run, found, tokenizer, output, monkeypatch, *, averaged: bool = False) -> ModelCard:
    save_task_model(run / "model", "xsum", Codec(tokenizer, tokenizer))
    weights = BnbForConditionalGeneration.from_pretrained(run / "model").state_dict()
    monkeypatch.setattr("bnb_ds.export.finetuned.plain_weights", lambda path: weights)
    export_task_model(run, found, output, weights if averaged else None)
    return ModelCard.load(output / "README.md")


def test_what_the_hub_reads_of_a_fine_tuned_model(run, found, small_tokenizer, tmp_path, monkeypatch):
    card = export_xsum(run, found, small_tokenizer, tmp_path / "out", monkeypatch)
    data = card.data.to_dict()
    (index,) = data.pop("model-index")
    assert data == {
        "base_model": ["somebody/bnb-base"],  # the others are no names of the hub
        "language": ["en"],
        "library_name": "transformers",
        "metrics": ["rouge"],
        "pipeline_tag": "summarization",
        "tags": ["bert-nar-bert", "non-autoregressive", "bnb_ds"],
    }
    (result,) = index["results"]
    assert result["dataset"] == {"name": "XSum, own files", "type": "xsum", "split": "validation"}
    assert result["metrics"] == [{"name": "rougeL", "type": "rouge", "value": 20.5}]
    assert result["task"]["type"] == "summarization"


def test_scores_of_two_splits(run, found, small_tokenizer, tmp_path, monkeypatch):
    """The first selects; the tags of its scores say `eval`, and those of the other one its name."""
    recipe = yaml.safe_load((run / "config.resolved.yaml").read_text()) | {"task": "mnli"}
    (run / "config.resolved.yaml").write_text(yaml.safe_dump(recipe))
    (run / "metrics.jsonl").write_text('{"step": 1, "eval/accuracy": 80.5, "eval_mismatched/accuracy": 81.5}\n')
    save_task_model(run / "model", "mnli", Codec(small_tokenizer, small_tokenizer))
    weights = load_system(run / "model").load(run / "model").state_dict()
    monkeypatch.setattr("bnb_ds.export.finetuned.plain_weights", lambda path: weights)
    export_task_model(run, found, tmp_path / "out")
    listed = ModelCard.load(tmp_path / "out" / "README.md").data.eval_results
    assert [(result.dataset_split, result.metric_value) for result in listed] == [
        ("validation_matched", 80.5),
        ("validation_mismatched", 81.5),
    ]


def test_no_paths_of_the_author_in_a_card(run, found, small_tokenizer, tmp_path, monkeypatch):
    text = export_xsum(run, found, small_tokenizer, tmp_path / "out", monkeypatch).content
    for path in ("/home", "/scratch", "~", "/me", str(run)):
        assert path not in text
    assert "`finetune.py --recipe xsum.yaml data.train=train.jsonl`" in text
    assert "train: train.jsonl\n" in text
    assert "document: a/b\n" in text
    assert "output_dir: xsum\n" in text


def test_scores_of_a_checkpoint_are_not_those_of_a_mean(run, found, small_tokenizer, tmp_path, monkeypatch):
    card = export_xsum(run, found, small_tokenizer, tmp_path / "out", monkeypatch, averaged=True)
    assert "model-index" not in card.data.to_dict()


@pytest.mark.parametrize(
    ("task", "language", "tag", "metrics"),
    [
        ("wmt16_ro_en", ["ro", "en"], "translation", ["sacrebleu"]),
        ("squad_qg", ["en"], "text-generation", ["rouge", "sacrebleu"]),
        ("stsb", ["en"], "text-classification", ["pearsonr", "spearmanr"]),
        ("translation", None, "translation", ["sacrebleu"]),
    ],
)
def test_what_the_hub_reads_of_a_task(task, language, tag, metrics):
    data = metadata({}, task=get_task(task), kind="classifier")
    assert (data.language, data.pipeline_tag, sorted(data.metrics)) == (language, tag, metrics)
    assert data.tags == ["bnb_ds"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/a.txt", "a.txt"),
        ("/data/*.jsonl", "*.jsonl"),
        ("key=/home/a b/c", "key=c"),
        ("[/a/b.txt, /c/d.txt]", "[b.txt, d.txt]"),
        ("~/runs/x/", "x"),
        ("https://host/a/b", "https://host/a/b"),
        ("work/models/x", "work/models/x"),
        ("../x/y", "../x/y"),
        (["a", {"b": "/c/d"}, 3], ["a", {"b": "d"}, 3]),
    ],
    ids=str,
)
def test_names_in_the_place_of_paths(text, expected):
    assert without_paths(text) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, "rajpurkar/squad"),
        ({"train": None, "hub": None, "documents": {"train": "list.txt"}}, "rajpurkar/squad"),
        ({"hub": "somebody/questions"}, "somebody/questions"),
        ({"hub": "."}, None),  # a directory here
        ({"train": "train.jsonl"}, None),
        ({"train": "train.jsonl", "hub": "somebody/questions"}, None),
        ({"train": None, "validation_matched": "rows.tsv"}, None),
    ],
)
def test_rows_of_files_are_no_data_set_of_the_hub(data, expected):
    task = get_task("squad_qg")
    assert metadata({"data": data}, task=task).datasets == ([expected] if expected else None)
    (listed,) = results(task, "test", {"rougeL": 40.0}, hub_data(task, data))
    own = ("squad_qg", f"{task.title}, own files")
    assert (listed.dataset_type, listed.dataset_name) == ((expected, task.title) if expected else own)
    assert results(get_task("summarization"), "test", {"rougeL": 4.0}, None)[0].dataset_name == "Summarization"
