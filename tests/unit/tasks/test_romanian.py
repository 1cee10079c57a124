"""The two spellings of Romanian: what is read, what is learnt and what is scored are respelled apart."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
import yaml

from bnb_ds.cli import main
from bnb_ds.errors import CheckpointError, ConfigError
from bnb_ds.evaluate.model import evaluate_model
from bnb_ds.generate.reading import SourceReader
from bnb_ds.systems.model_dir import system_and_data
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.romanian import respell
from bnb_ds.tasks.tokenised import tokenise
from tests.exports import save_task_model

CEDILLA = "\u015etiin\u0163\u0103, \u00eent\u00e2i \u0162ara \u015fi"
COMMA = "\u0218tiin\u021b\u0103, \u00eent\u00e2i \u021aara \u0219i"
PLAIN = "Stiinta, intai Tara si"


@pytest.mark.parametrize(
    "text", [CEDILLA, COMMA, unicodedata.normalize("NFD", CEDILLA), unicodedata.normalize("NFD", COMMA)]
)
def test_each_spelling(text):
    assert respell(text, "none") == text
    assert respell(text, "comma") == COMMA
    assert respell(text, "plain") == PLAIN
    for spelling in ("comma", "plain"):
        assert respell(respell(text, spelling), spelling) == respell(text, spelling)


def test_other_letters_stay():
    text = "Fa\u00e7ade, \u00c5ngstr\u00f6m, na\u00efve, \u00fcber 3\u00b0"
    assert respell(text, "plain") == text


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"translation": {"en": CEDILLA, "ro": CEDILLA}}) + "\n", encoding="utf-8")
    return path


def tokenised(codec, rows, **romanian):
    data = TaskDataSection(validation=str(rows), cache_dir=str(rows.parent / "cache"), romanian=romanian or None)
    codec.spelling = {"source": romanian.get("source", "none"), "target": romanian.get("target", "none")}
    return tokenise(get_task("wmt16_en_ro"), data, "validation", codec)


def test_source_target_and_references_are_respelled_apart(small_tokenizer, rows):
    codec = Codec(small_tokenizer, small_tokenizer)
    ids = {text: small_tokenizer(text)["input_ids"] for text in (CEDILLA, COMMA, PLAIN)}
    found = {}
    for source, target, references in (
        ("none", "none", "none"),
        ("comma", "none", "none"),
        ("none", "plain", "none"),
        ("plain", "comma", "plain"),
    ):
        split = tokenised(codec, rows, source=source, target=target, references=references)
        texts = {"none": CEDILLA, "comma": COMMA, "plain": PLAIN}
        assert split.sources(np.array([0]))[0].tolist() == ids[texts[source]]
        assert split.targets(np.array([0]))[0].tolist() == ids[texts[target]]
        assert split.references() == [texts[references]]
        found[source, target, references] = split.fingerprint
    assert len(set(found.values())) == len(found)
    assert tokenised(codec, rows).fingerprint == found["none", "none", "none"]


def test_a_model_directory_keeps_its_spelling(small_tokenizer, tmp_path):
    codec = Codec(small_tokenizer, small_tokenizer)
    codec.spelling = {"source": "plain", "target": "comma"}
    model = save_task_model(tmp_path / "model", "wmt16_ro_en", codec)
    assert Codec.load(model).fingerprint == codec.fingerprint != Codec(small_tokenizer, small_tokenizer).fingerprint
    ((ids,), _) = SourceReader.load(model).encode([CEDILLA])
    assert ids == small_tokenizer(PLAIN)["input_ids"][:16]
    (model / "romanian.json").write_text('{"source": "plane", "target": "none"}')
    with pytest.raises(CheckpointError, match=r"romanian.json: is no spelling of Romanian .*; export the model again"):
        Codec.load(model)


def test_outputs_and_references_are_scored_alike(small_tokenizer, rows, monkeypatch, capsys):
    """The model's own output does not matter here, so it is replaced by the reference with its cedillas."""
    model = save_task_model(rows.parent / "model", "wmt16_en_ro", Codec(small_tokenizer, small_tokenizer))
    data = {"validation": str(rows), "cache_dir": str(rows.parent / "cache"), "romanian": {"references": "comma"}}
    (model / "recipe.yaml").write_text(yaml.safe_dump({"data": data}))
    system, _ = system_and_data(model, None, ())
    assert (system.scored_spelling, system.codec.spelling) == ("comma", {"source": "none", "target": "none"})
    monkeypatch.setattr(Codec, "decode", lambda self, outputs: [CEDILLA for _ in outputs])
    found = evaluate_model(model)
    assert found.scores["bleu"] == 100
    assert found.results["settings"]["romanian"] == "outputs and references spelled as comma"
    assert (found.directory / "generated_predictions.txt").read_text() == f"{COMMA}\n"
    assert (found.directory / "references.txt").read_text() == f"{COMMA}\n"
    assert main(["evaluate", str(model), "--set", "data.romanian.references=plain"]) == 0
    assert (found.directory / "references.txt").read_text() == f"{PLAIN}\n"
    capsys.readouterr()


@pytest.mark.parametrize("task", ["xsum", "wmt14_en_de"])
def test_other_tasks_have_no_romanian(task, small_tokenizer, tmp_path):
    model = save_task_model(tmp_path / "model", task, Codec(small_tokenizer, small_tokenizer))
    with pytest.raises(
        ConfigError, match=f"data.romanian: task {task} is no translation from or into Romanian; remove"
    ):
        system_and_data(model, None, ["data.romanian.source=comma"])
