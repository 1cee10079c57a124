"""Encoders of Optimus become plain BERTs, with which a classifier begins."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertModel

from bnb_ds.baselines.settings import ClassifierSection
from bnb_ds.cli import main
from bnb_ds.errors import CheckpointError, DataError
from bnb_ds.export.import_optimus import import_optimus
from bnb_ds.systems.baselines import CheckpointClassifier
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.text_lengths import Lengths
from tests.tiny import bert_config


def saved(folder, tokenizer, *, config=None, **weights):
    """A directory as Optimus saves it: old configuration without a type, and a layer to the latent."""
    torch.manual_seed(0)
    model = BertModel(bert_config(vocab_size=len(tokenizer)))
    folder.mkdir(exist_ok=True)
    own = {name: value for name, value in model.config.to_dict().items() if name not in ("model_type", "dtype")}
    old = {"finetuning_task": None, "pruned_heads": {}, "torchscript": False}
    (folder / "config.json").write_text(json.dumps({**own, **old, **(config or {})}))
    states = {**model.state_dict(), "linear.weight": torch.zeros(10, 12), **weights}
    torch.save({name: weight for name, weight in states.items() if weight is not None}, folder / "pytorch_model.bin")
    return model.eval()


def test_a_classifier_begins_with_it(tmp_path, small_tokenizer, capsys):
    theirs = saved(tmp_path / "optimus", small_tokenizer)
    small_tokenizer.save_pretrained(tmp_path / "tokenizer")
    command = ["import-optimus", str(tmp_path / "optimus"), str(tmp_path / "bert")]
    assert main([*command, "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    assert capsys.readouterr().out == f"import-optimus: {tmp_path / 'optimus'} -> {tmp_path / 'bert'}\n"
    section, task = ClassifierSection(kind="classifier", checkpoint=str(tmp_path / "bert")), get_task("sst2")
    codec = CheckpointClassifier.make_codec(task, section, TaskDataSection())
    model = CheckpointClassifier(task, Lengths(20, 8), codec, section).build().model.eval()
    ids = torch.tensor([[2, 7, 9, 3]])
    with torch.no_grad():
        assert torch.allclose(model.bert(ids).pooler_output, theirs(ids).pooler_output, atol=1e-6), "and its pooler"
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert", output_loading_info=True)
    assert not [name for name in info["missing_keys"] if not name.startswith("classifier.")]


def test_without_a_tokenizer_it_is_said(tmp_path, small_tokenizer):
    saved(tmp_path / "optimus", small_tokenizer)
    (note,) = import_optimus(tmp_path / "optimus", tmp_path / "bert")
    assert note == (
        f"note: {tmp_path / 'optimus'} holds no tokenizer; a recipe with {tmp_path / 'bert'} needs data.tokenizer"
        " (bert-base-cased)"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"linear.weight": None}, r"does not fit an encoder of Optimus: linear.weight is missing; give another"),
        ({"pooler.dense.bias": torch.zeros(5)}, r"pooler.dense.bias has shape \[5\], not \[12\]"),
        ({"transformer.wte.weight": torch.zeros(1)}, r"transformer.wte.weight is unknown"),
        ({"config": {"hidden_size": 9, "num_attention_heads": 3}}, r"word_embeddings.weight has shape"),
        (
            {"config": {"num_attention_heads": 5}},
            r"config.json: cannot be read as a BERT's configuration: The hidden size \(12\) is not a multiple of.*"
            r" \(5\); restore it, or name another",
        ),
        (
            {"config": {"hidden_act": "geluu"}},
            r"config.json: hidden_act 'geluu': no such activation; did you mean 'gelu'",
        ),
        ({"config": {"hidden_act": 3}}, r"config.json: hidden_act 3: no such activation; known: "),
        (
            {"config": {"hidden_size": "12"}},
            r"config.json: cannot be read as a BERT's configuration: Validation error for field 'hidden_size': .*str",
        ),
        ({"config": {"vocab_size": None}}, r"BERT's configuration: Validation error for field 'vocab_size': .*None"),
        ({"config": {"pad_token_id": 999}}, r"config.json: cannot be read as a BERT's configuration: Padding_idx must"),
        ({"config": {"model_type": "gpt2"}}, r"is not the configuration of a BERT: its model_type is gpt2; give an"),
    ],
)
def test_other_checkpoints_are_refused(tmp_path, small_tokenizer, change, message):
    saved(tmp_path / "optimus", small_tokenizer, **change)
    with pytest.raises(CheckpointError, match=message):
        import_optimus(tmp_path / "optimus", tmp_path / "bert")
    assert not (tmp_path / "bert").exists()


def test_other_files_are_refused(tmp_path, small_tokenizer, other_tokenizer):
    with pytest.raises(CheckpointError, match=r"config.json: no such file; give a directory checkpoint-encoder-STEP"):
        import_optimus(tmp_path, tmp_path / "bert")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json: cannot be read: .*; restore it"):
        import_optimus(tmp_path, tmp_path / "bert")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"is not the configuration of a BERT: it has no vocab_size; give an enc"):
        import_optimus(tmp_path, tmp_path / "bert")
    saved(tmp_path / "optimus", small_tokenizer)
    other_tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(DataError, match=r"has \d+ tokens, but the model has \d+; give the tokenizer of its training"):
        import_optimus(tmp_path / "optimus", tmp_path / "bert", tokenizer=tmp_path / "tokenizer")
