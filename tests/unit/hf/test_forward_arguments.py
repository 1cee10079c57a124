"""What transformers' Trainer and PEFT give to a forward pass."""

from __future__ import annotations

import pytest
import torch
from transformers.trainer_pt_utils import LabelSmoother
from transformers.utils.generic import find_labels

from bnb_ds.errors import ConfigError
from bnb_ds.model.classification import BnbForSequenceClassification
from bnb_ds.modeling import BnbForConditionalGeneration
from tests.tiny import bnb_config, bnb_model, padded_form, source_ids

BATCH = padded_form(source_ids([7, 5]), source_ids([4, 3], seed=5))
NOTHING = dict.fromkeys(
    (
        "inputs_embeds",
        "decoder_input_ids",
        "decoder_attention_mask",
        "decoder_inputs_embeds",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "past_key_values",
        "encoder_outputs",
    )
)


def classifier(num_labels: int = 3) -> BnbForSequenceClassification:
    torch.manual_seed(0)
    return BnbForSequenceClassification(bnb_config(num_labels=num_labels)).eval()


def test_arguments_of_other_models_may_be_none():
    model = bnb_model()
    assert torch.equal(model(**BATCH, **NOTHING).loss, model(**BATCH).loss)
    inputs = {**BATCH, "labels": torch.tensor([2, 0])}
    assert torch.equal(classifier()(**inputs, **NOTHING).loss, classifier()(**inputs).loss)
    body, sources = model.model, {name: BATCH[name] for name in ("input_ids", "attention_mask")}
    states = body(**sources).last_hidden_state
    assert torch.equal(body(**sources, **NOTHING).last_hidden_state, states)
    assert torch.equal(body(**sources, return_dict=False)[0], states)


@pytest.mark.parametrize("make", [bnb_model, classifier])
def test_a_tuple_begins_with_the_loss(make):
    model, labels = make(), BATCH["labels"] if make is bnb_model else torch.tensor([2, 0])
    output = model(**{**BATCH, "labels": labels}, return_dict=False)
    assert isinstance(output, tuple)
    assert torch.equal(output[0], model(**{**BATCH, "labels": labels}).loss)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "inputs_embeds",
            "forward was given inputs_embeds: positions and layout are read off token ids: give input_ids",
        ),
        ("decoder_input_ids", "decoded at once, from the source alone: leave it out"),
        ("output_attentions", "attention over packed rows keeps no weights: leave it out"),
        ("output_hidden_states", "only encoder_last_hidden_state is kept"),
        ("past_key_values", "nothing is decoded one token after the other"),
    ],
)
@pytest.mark.parametrize("make", [bnb_model, classifier])
def test_a_value_that_no_parallel_decoder_can_use_is_refused(make, name, said):
    with pytest.raises(ConfigError, match=said):
        make()(BATCH["input_ids"], **{name: torch.ones(2, 3)})


def test_missing_and_unknown_arguments():
    with pytest.raises(ConfigError, match="forward was given no input_ids: give the token ids of the sources"):
        bnb_model()(labels=BATCH["labels"])
    with pytest.raises(ConfigError, match="forward was given label_lengths: this model has no such argument"):
        classifier()(BATCH["input_ids"], label_lengths=torch.ones(2))
    with pytest.raises(ConfigError, match="forward was given labels: this model has no such argument"):
        bnb_model().model(**BATCH)


def test_only_labels_count_as_labels():
    """The Trainer computes no `eval_loss` if an argument that it takes for a label is missing."""
    assert find_labels(BnbForConditionalGeneration) == find_labels(BnbForSequenceClassification) == ["labels"]


def test_losses_of_micro_batches_add_up_to_that_of_the_batch():
    model = bnb_model()
    assert model.accepts_loss_kwargs
    count = (BATCH["labels"] != -100).sum()
    parts = [
        model(**{name: tensor[row : row + 1] for name, tensor in BATCH.items()}, num_items_in_batch=count).loss
        for row in range(2)
    ]
    torch.testing.assert_close(sum(parts), model(**BATCH).loss)
    # There the count is of sequences, and the Trainer counts tokens.
    assert not bnb_model(loss_reduction="sample").accepts_loss_kwargs
    assert not classifier().accepts_loss_kwargs


def test_label_smoothing_of_the_trainer_is_refused_with_the_equal_weight():
    """Its reading of logits means nothing for CTC; kl_weight e/(1-e) smooths as much."""
    model = bnb_model()
    inputs = {name: tensor for name, tensor in BATCH.items() if name != "labels"}
    said = r"label_smoothing_factor 0.1: .*set it to 0, and load the model with kl_weight=0.1111"
    for output in (model(**inputs), model(**BATCH)):
        with pytest.raises(ConfigError, match=said):
            LabelSmoother(epsilon=0.1)(output, BATCH["labels"])
    # (1 - e) nats + e * mean over slots and classes of -log p, but for the constant e * log(V)
    smoothed = bnb_model(kl_weight=0.1 / 0.9)(**BATCH, return_logits=True)
    plain = model(**BATCH).loss_sum
    rows = zip(smoothed.logits.log_softmax(-1), smoothed.decoder_lengths, (4, 3), strict=True)
    uniform = sum(tokens * -row[:slots].mean() for row, slots, tokens in rows)
    constant = 7 * torch.log(torch.tensor(float(smoothed.logits.shape[-1]), dtype=torch.float64))
    torch.testing.assert_close(0.9 * smoothed.loss_sum, 0.9 * plain + 0.1 * (uniform - constant))
    with pytest.raises(KeyError):  # outputs of other models still go to transformers
        LabelSmoother(epsilon=0.1)({}, BATCH["labels"])
