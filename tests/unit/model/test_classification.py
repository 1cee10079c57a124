"""Classification heads and the separate encoder, against transformers' own BERT."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, BertForSequenceClassification, BertModel

from bnb_ds.errors import ConfigError
from bnb_ds.model.classification import BnbEncoderModel, BnbForSequenceClassification, encoder_of
from tests.tiny import bert_config, bnb_model, packed_form, padded_form, source_ids

LENGTHS = [7, 1, 10]
SOURCES = source_ids(LENGTHS)
REAL = padded_form(SOURCES)["attention_mask"].bool()


def save_bert(directory, **options):
    torch.manual_seed(0)
    bert = BertModel(bert_config(), **options).eval()
    bert.save_pretrained(directory)
    return bert


def test_the_encoder_loads_from_a_whole_model_and_leaves_as_a_plain_bert(tmp_path):
    whole = bnb_model(dtype=torch.float32)
    whole.save_pretrained(tmp_path / "whole")
    encoder = BnbEncoderModel.from_pretrained(tmp_path / "whole")
    expected = whole(**padded_form(SOURCES)).encoder_last_hidden_state
    assert torch.equal(encoder(**padded_form(SOURCES)), expected)
    assert torch.equal(encoder(**packed_form(SOURCES)), expected[REAL])
    assert torch.equal(encoder_of(whole)(**padded_form(SOURCES)), expected)
    encoder.to_bert().save_pretrained(tmp_path / "bert")
    bert = AutoModel.from_pretrained(tmp_path / "bert", add_pooling_layer=False).eval()
    assert isinstance(bert, BertModel)
    with torch.no_grad():
        theirs = bert(**padded_form(SOURCES)).last_hidden_state
    torch.testing.assert_close(theirs[REAL], expected[REAL], rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_labels", [1, 3])
def test_logits_and_loss_equal_transformers_own(tmp_path, num_labels):
    torch.manual_seed(0)
    theirs = BertForSequenceClassification(bert_config(num_labels=num_labels)).eval()
    theirs.bert.save_pretrained(tmp_path)
    ours = BnbForSequenceClassification.from_bert(tmp_path, num_labels=num_labels)
    ours.classifier.load_state_dict(theirs.classifier.state_dict())
    labels = torch.tensor([0.5, -1.0, 2.0]) if num_labels == 1 else torch.tensor([2, 0, 1])
    with torch.no_grad():
        expected = theirs(**padded_form(SOURCES), labels=labels)
        for form in (padded_form, packed_form):
            got = ours(**form(SOURCES), labels=labels)
            torch.testing.assert_close(got.logits, expected.logits, rtol=0, atol=1e-5)
            torch.testing.assert_close(got.loss, expected.loss, rtol=0, atol=1e-5)
            torch.testing.assert_close(got.loss_sum, 3 * expected.loss, rtol=0, atol=1e-4)
            assert got.loss_count == 3


def test_a_checkpoint_without_a_pooler_gets_a_new_one(tmp_path):
    save_bert(tmp_path, add_pooling_layer=False)
    model = BnbForSequenceClassification.from_bert(tmp_path, num_labels=2)
    assert model.pooler.dense.weight.isfinite().all()
    assert not model.training


def test_a_trained_classifier_is_saved_and_loaded(tmp_path):
    whole = bnb_model(dtype=torch.float32)
    whole.save_pretrained(tmp_path / "whole")
    model = BnbForSequenceClassification.from_pretrained(tmp_path / "whole", num_labels=3).train()
    assert torch.equal(
        model.model.encoder.layer[0].output.dense.weight, whole.model.encoder.layer[0].output.dense.weight
    )
    labels = torch.tensor([0, 1, 2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        loss = model(**packed_form(SOURCES), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(tmp_path / "classifier")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert isinstance(loaded, BnbForSequenceClassification)
    logits = loaded(**padded_form(SOURCES)).logits
    assert torch.equal(logits, model(**padded_form(SOURCES)).logits)
    assert logits.argmax(-1).tolist() == [0, 1, 2]


def test_wrong_labels(tmp_path):
    model = bnb_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    classifier = BnbForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    with pytest.raises(ValueError, match=r"labels has shape \[2\] for 3 sequences: give one for each"):
        classifier(**packed_form(SOURCES), labels=torch.tensor([0, 1]))
    with pytest.raises(ConfigError, match="num_labels is 0: give the number of classes, or 1 for regression"):
        BnbForSequenceClassification.from_bert(tmp_path, num_labels=0)
