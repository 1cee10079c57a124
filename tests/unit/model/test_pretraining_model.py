"""The auxiliary loss of masked tokens, predicted from the encoder by a head tied to its word embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import BertForMaskedLM, BertModel

from bnb_ds.modeling import BnbForConditionalGeneration, BnbForPretraining, without_head
from bnb_ds.shards.reader import TokenShards
from bnb_ds.train.objectives import Reconstruction, ReconstructionAndEncoderMlm
from tests.tiny import bert_config, bnb_config, packed_form, source_ids
from tests.unit.data.test_samples import make_samples

CPU = torch.device("cpu")
LENGTHS = [7, 3, 11]


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = BnbForPretraining(bnb_config()).double().eval()
    with torch.no_grad():
        model.encoder_mlm_head.bias.normal_()
    return model


def inputs():
    sources = source_ids(LENGTHS)
    return packed_form(sources, sources)


def masked(places):
    index = torch.tensor(places, dtype=torch.int64)
    return {"masked_index": index, "masked_labels": (index * 7) % 40 + 5}


def plain_nats(model, places):
    """The loss from logits through the embedding matrix and torch's cross-entropy."""
    chosen = masked(places)
    hidden = model(**inputs()).encoder_last_hidden_state[chosen["masked_index"]]
    hidden = model.encoder_mlm_head.transform(hidden)
    logits = hidden @ model.model.encoder.embeddings.word_embeddings.weight.T + model.encoder_mlm_head.bias
    return F.cross_entropy(logits, chosen["masked_labels"], reduction="sum")


@pytest.mark.parametrize("places", [[0], [1, 6, 8, 20], list(range(21))])
def test_nats_and_gradients_equal_the_plain_way(model, places):
    found = model(**inputs(), **masked(places)).encoder_mlm_sum
    assert found.item() == pytest.approx(plain_nats(model, places).item(), rel=1e-9)
    ours = torch.autograd.grad(found, list(model.parameters()), allow_unused=True)
    plain = torch.autograd.grad(plain_nats(model, places), list(model.parameters()), allow_unused=True)
    for (name, _), a, b in zip(model.named_parameters(), ours, plain, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=name)


def test_the_sum_does_not_depend_on_how_the_batch_is_cut(model):
    whole = model(**inputs(), **masked([1, 6, 8, 20])).encoder_mlm_sum.item()
    parts = 0.0
    for rows, places, offset in (([7, 3], [1, 6, 8], 0), ([11], [20], 10)):
        sources = source_ids(LENGTHS)[:2] if rows == [7, 3] else source_ids(LENGTHS)[2:]
        chosen = masked(places)
        chosen["masked_index"] = chosen["masked_index"] - offset
        parts += model(**packed_form(sources, sources), **chosen).encoder_mlm_sum.item()
    assert parts == pytest.approx(whole, rel=1e-9)


def test_without_masked_tokens_the_sum_is_0_and_the_head_has_gradients(model):
    output = model(**inputs(), **masked([]))
    assert output.encoder_mlm_sum.item() == 0
    (output.loss_sum + output.encoder_mlm_sum).backward()
    assert all(parameter.grad is not None for parameter in model.encoder_mlm_head.parameters())
    assert all((parameter.grad == 0).all() for parameter in model.encoder_mlm_head.parameters())


def test_without_places_it_is_the_model_itself(model):
    plain = BnbForConditionalGeneration(bnb_config()).double().eval()
    plain.load_state_dict(without_head(model.state_dict()))
    assert set(model.state_dict()) - set(plain.state_dict()) == {
        f"encoder_mlm_head.{name}" for name in model.encoder_mlm_head.state_dict()
    }
    assert model(**inputs()).loss.item() == plain(**inputs()).loss.item()


@pytest.mark.parametrize("has_head", [True, False])
def test_the_head_starts_from_the_encoders_checkpoint(tmp_path, has_head):
    torch.manual_seed(3)
    bert = (BertForMaskedLM if has_head else BertModel)(bert_config())
    if has_head:
        torch.nn.init.normal_(bert.cls.predictions.bias)
    bert.save_pretrained(tmp_path / "bert")
    model = BnbForPretraining.from_bert(tmp_path / "bert", latent_size=5)
    assert isinstance(model, BnbForPretraining)
    bias = model.encoder_mlm_head.bias
    if has_head:
        assert torch.equal(bias, bert.cls.predictions.bias)
        expected = bert.cls.predictions.transform.dense.weight
        assert torch.equal(model.encoder_mlm_head.transform.dense.weight, expected)
        embeddings = model.model.encoder.embeddings.word_embeddings.weight
        assert torch.equal(embeddings, bert.bert.embeddings.word_embeddings.weight)
    else:
        assert (bias == 0).all()


def test_the_objective_adds_weighted_nats_of_masked_tokens(small_shards):
    shards = TokenShards(small_shards, "train")
    batch = make_samples(shards, max_length=20, mask=0.3).batch(np.arange(5), np.zeros(5, np.int64))
    torch.manual_seed(0)
    size = {"vocab_size": shards.vocab_size}
    model = BnbForPretraining(bnb_config(encoder=size, decoder=size)).eval()
    plain = Reconstruction().loss_sum(model, batch, CPU, 1)
    output = model(**batch.model_inputs(CPU), masked_index=batch.masked_index, masked_labels=batch.masked_labels)
    objective = ReconstructionAndEncoderMlm(0.25)
    expected = plain + 0.25 * output.encoder_mlm_sum
    assert objective.loss_sum(model, batch, CPU, 1).item() == pytest.approx(expected.item(), rel=1e-6)
    assert output.encoder_mlm_sum.item() > 1
    assert objective.count(batch) == Reconstruction().count(batch) == batch.num_targets
