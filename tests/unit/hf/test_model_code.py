"""A saved model leads transformers to this package; none of our own loaders runs what lies beside it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.hf.model_code import AUTO_MAP, CODE_FILE
from bnb_ds.model.classification import BnbForSequenceClassification
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration, BnbModel
from bnb_ds.systems.bnb import BnbClassifier
from tests.exports import save_model


@pytest.fixture
def exported(small_tokenizer, tmp_path):
    return save_model(tmp_path / "model", small_tokenizer)


@pytest.mark.parametrize("trust", [None, False, True])
def test_code_beside_a_model_is_not_run_where_the_package_is_known(exported, trust, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")
    mark = exported.parent / "mark"
    (exported / CODE_FILE).write_text(f"open({str(mark)!r}, 'w')\n")
    for auto, kind in (
        (AutoConfig, BnbConfig),
        (AutoModel, BnbModel),
        (AutoModelForSeq2SeqLM, BnbForConditionalGeneration),
        (AutoModelForSequenceClassification, BnbForSequenceClassification),
    ):
        assert type(auto.from_pretrained(exported, trust_remote_code=trust)) is kind
    assert BnbPipeline.from_pretrained(exported, device="cpu")(["a text"])
    assert type(BnbClassifier.load_config(None, exported)) is BnbConfig
    assert not mark.exists()


def test_every_saved_model_has_the_code_again(exported, tmp_path):
    model = AutoModelForSeq2SeqLM.from_pretrained(exported)
    type(model).register_for_auto_class("AutoModelForSeq2SeqLM")  # what transformers does after it ran the code
    type(model.config).register_for_auto_class()
    model.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["auto_map"] == AUTO_MAP
    assert [path.name for path in (tmp_path / "again").glob("*.py")] == [CODE_FILE]
    assert not hasattr(model.config, "auto_map")


LOAD = """
import sys
from transformers import AutoModelForSeq2SeqLM
if "hide" in sys.argv:
    sys.modules["bnb_ds"] = None
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], **eval(sys.argv[2]))
print(type(model).__module__, type(model).__name__)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{'trust_remote_code': True}"], "bnb_ds.modeling BnbForConditionalGeneration"),
        (["{}"], "trust_remote_code=True"),
        (
            ["{'trust_remote_code': True}", "hide"],
            "ImportError: this model needs the Python package bnb_ds (BERT-NAR-BERT",
        ),
    ],
    ids=["trusted", "not trusted", "not installed"],
)
def test_a_program_that_does_not_import_the_package(exported, arguments, said, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    command = [sys.executable, "-c", LOAD, str(exported), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert said in result.stdout + result.stderr
