"""Code that lies in the directory of a model or tokenizer is never run, whatever is typed where it would be asked."""

from __future__ import annotations

import json

import pytest
from transformers import BertConfig

from bnb_ds.baselines.build import _read_bert_config, read_classifier, read_seq2seq
from bnb_ds.baselines.tokenizers import read_tokenizer
from bnb_ds.errors import CheckpointError
from bnb_ds.systems.bnb import BnbClassifier

CODE = """
import pathlib
pathlib.Path(__file__).with_name("mark").touch()
pathlib.Path({mark!r}).touch()
from transformers import BertConfig, BertModel, BertTokenizerFast
class Config(BertConfig):
    model_type = "planted"
class Model(BertModel):
    pass
class Tokenizer(BertTokenizerFast):
    pass
"""
MAP = {"AutoConfig": "planted.Config", "AutoTokenizer": ["planted.Tokenizer", "planted.Tokenizer"]} | {
    f"AutoModel{suffix}": "planted.Model" for suffix in ("", "ForSeq2SeqLM", "ForSequenceClassification")
}


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Makes a directory that names its own code; whoever asks the user about it is told to go on."""
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")

    def make(model_type: str):
        (tmp_path / "planted.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
        config = {**BertConfig(vocab_size=9).to_dict(), "model_type": model_type, "auto_map": MAP}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": MAP, "tokenizer_class": "Planted"}))
        return tmp_path

    yield make
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "read",
    [
        read_seq2seq,
        read_classifier,
        _read_bert_config,
        read_tokenizer,
        lambda path: BnbClassifier.load_config(None, path),
    ],
    ids=["seq2seq", "classifier", "bert", "tokenizer", "system"],
)
def test_a_model_of_a_kind_that_it_brings_along(planted, read):
    path = planted("planted")
    with pytest.raises(CheckpointError, match=f"{path}: cannot be read as a .*contains custom code") as found:
        read(str(path))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("read", [read_seq2seq, read_tokenizer], ids=["seq2seq", "tokenizer"])
def test_a_model_of_a_known_kind_with_classes_of_its_own(planted, read):
    with pytest.raises(CheckpointError):
        read(str(planted("clip")))
