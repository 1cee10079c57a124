"""The Python example of a model's README runs, and gives what the commands give."""

from __future__ import annotations

import json
import re

import pytest

from bnb_ds.export.finetuned import export_task_model
from bnb_ds.export.pretrained import export_pretrained_model
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.systems.model_dir import load_system
from bnb_ds.tasks.codec import Codec
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
