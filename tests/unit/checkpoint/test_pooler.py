"""BERT's pooler goes with a pre-trained model, and a classifier begins with it."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModel, BertForPreTraining, BertModel

from bnb_ds.checkpoint.pooler import POOLER_FILE, keep_pooler, kept_pooler
from bnb_ds.config.model_section import ModelSection
from bnb_ds.errors import CheckpointError
from bnb_ds.export.pretrained import export_pretrained_model
from bnb_ds.model.classification import BnbEncoderModel, BnbForSequenceClassification
from bnb_ds.modeling import BnbForConditionalGeneration
from tests.tiny import bert_config, bnb_config


@pytest.fixture
def bert(small_tokenizer, tmp_path):
    torch.manual_seed(0)
    model = BertForPreTraining(bert_config(vocab_size=len(small_tokenizer)))
    model.save_pretrained(tmp_path / "bert")
    return model.bert


def exported(run, section, weights, output, *, encoder_only=False):
    """What a run that begins with ``section`` exports, if its training left these weights."""
    keep_pooler(section, run / "model")
    export_pretrained_model(run, run / "step_00000001", output, encoder_only=encoder_only, weights=weights)
    return output


@pytest.fixture
def run(small_tokenizer, tmp_path):
    folder = tmp_path / "run"
    sizes = {"vocab_size": len(small_tokenizer)}
    model = BnbForConditionalGeneration(bnb_config(sizes, sizes))
    model.config.save_pretrained(folder / "model")
    small_tokenizer.save_pretrained(folder / "model")
    (folder / "config.resolved.yaml").write_text("selection: {split: validation}\nobjective: {corruption: mlm}\n")
    launch = {"command": ["x"], "data_fingerprint": "f", "git_revision": None, "world_size": 1, "python": "3"}
    (folder / "launches.jsonl").write_text(json.dumps({**launch, "packages": {"torch": "2"}}) + "\n")
    return folder


def test_a_classifier_begins_with_berts_pooler(run, bert, tmp_path):
    weights = BnbForConditionalGeneration.from_bert(tmp_path / "bert", latent_size=5, decoder_positions="shared")
    out = exported(run, ModelSection(encoder=str(tmp_path / "bert")), weights.state_dict(), tmp_path / "out")
    classifier = BnbForSequenceClassification.from_pretrained(out, num_labels=3)
    assert torch.equal(classifier.pooler.dense.weight, bert.pooler.dense.weight)
    assert torch.equal(classifier.pooler.dense.bias, bert.pooler.dense.bias)
    for other in (BnbForConditionalGeneration, BnbEncoderModel):
        _, info = other.from_pretrained(out, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"], "nobody is warned of a pooler that is not needed"
    # A run that goes on from the export hands it on.
    again = tmp_path / "again"
    again.mkdir()
    keep_pooler(ModelSection(checkpoint=str(out)), again)
    assert torch.equal(kept_pooler(again)["pooler.dense.weight"], bert.pooler.dense.weight)
    before = (again / POOLER_FILE).stat().st_mtime_ns
    keep_pooler(ModelSection(checkpoint=str(tmp_path / "absent")), again)
    assert (again / POOLER_FILE).stat().st_mtime_ns == before, "a launch that resumes finds it there"


def test_the_encoder_alone_is_the_whole_bert(run, bert, tmp_path):
    weights = BnbForConditionalGeneration.from_bert(tmp_path / "bert", latent_size=5, decoder_positions="shared")
    section = ModelSection(encoder=str(tmp_path / "bert"))
    out = exported(run, section, weights.state_dict(), tmp_path / "out", encoder_only=True)
    encoder = AutoModel.from_pretrained(out).eval()
    ids = torch.tensor([[2, 7, 9, 3]])
    with torch.no_grad():
        assert torch.allclose(encoder(ids).pooler_output, bert.eval()(ids).pooler_output, atol=1e-6)
    assert 'AutoModel.from_pretrained(".")' in (out / "README.md").read_text()


@pytest.mark.parametrize("start", ["random weights", "a BERT without"])
def test_without_a_pooler_there_is_none(run, start, small_tokenizer, tmp_path):
    section = ModelSection()
    if start == "a BERT without":
        BertModel(bert_config(), add_pooling_layer=False).save_pretrained(tmp_path / "bare")
        section = ModelSection(encoder=str(tmp_path / "bare"))
    sizes = {"vocab_size": len(small_tokenizer)}
    weights = BnbForConditionalGeneration(bnb_config(sizes, sizes)).state_dict()
    out = exported(run, section, weights, tmp_path / "out")
    assert not (run / "model" / POOLER_FILE).exists()
    _, info = BnbForSequenceClassification.from_pretrained(out, num_labels=2, output_loading_info=True)
    assert "pooler.dense.weight" in info["missing_keys"]
    alone = exported(run, section, weights, tmp_path / "alone", encoder_only=True)
    assert "add_pooling_layer=False" in (alone / "README.md").read_text()


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / POOLER_FILE).write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=f"{POOLER_FILE}: cannot be read as a pooler: .*; restore it, or name"):
        kept_pooler(tmp_path)
