"""Length classification: classes and candidates, stretched latents, the loss, and the beam of lengths."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from bnb_ds.errors import ConfigError
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.length import LengthPredictor, most_lengths, stretch_latents
from tests.tiny import bnb_config, bnb_model, layout_of, packed_form, padded_form, source_ids

LENGTHS = [7, 1, 10]
PREDICTED = {"decoder_length": "predicted", "length_difference_min": -3, "length_difference_max": 2}


def predictor_config(**config) -> BnbConfig:
    return bnb_config(**{**PREDICTED, **config})


def predictor(**config) -> LengthPredictor:
    torch.manual_seed(0)
    return LengthPredictor(predictor_config(**config)).double()


@pytest.mark.parametrize("targets", [[7, 1, 10], [3, 4, 1], [9, 2, 24]])
@pytest.mark.parametrize("width", [0.3, 1.0, 5.0])
def test_stretched_latents_equal_a_loop(targets, width):
    latents = torch.randn(sum(LENGTHS), 5, dtype=torch.float64)
    got = stretch_latents(
        latents, layout_of(LENGTHS), layout_of(targets), torch.tensor([width], dtype=torch.float64)
    ).split(targets)
    for rows, source, num_slots in zip(latents.split(LENGTHS), got, targets, strict=True):
        num_tokens = len(rows)
        for slot in range(num_slots):
            scores = [-((k - slot * num_tokens / num_slots) ** 2) / (2 * width**2) for k in range(num_tokens)]
            weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
            torch.testing.assert_close(source[slot], weights @ rows, rtol=0, atol=1e-12)


def test_equal_lengths_and_a_narrow_width_change_nothing():
    latents = torch.randn(sum(LENGTHS), 5)
    same = stretch_latents(latents, layout_of(LENGTHS), layout_of(LENGTHS), torch.tensor([0.05]))
    torch.testing.assert_close(same, latents)


def test_logits_come_from_the_mean_latent():
    heads, latents = predictor(), torch.randn(sum(LENGTHS), 5, dtype=torch.float64)
    means = torch.stack([rows.mean(0) for rows in latents.split(LENGTHS)])
    torch.testing.assert_close(heads(latents, layout_of(LENGTHS)), heads.classifier(means))


def test_lengths_beyond_the_classes_train_the_nearest():
    logits, sources = torch.randn(4, 6), torch.tensor([10, 10, 10, 10])
    nll = predictor().nll(logits, sources, torch.tensor([7, 2, 12, 40]))
    classes = torch.tensor([0, 0, 5, 5])
    torch.testing.assert_close(nll, F.cross_entropy(logits, classes, reduction="none"))


def test_candidates_are_possible_lengths_best_first():
    logits = torch.tensor([[0.0, 5.0, 1.0, 4.0, 3.0, 2.0]] * 3)
    best = predictor().best(logits, torch.tensor([10, 2, 1]), 4)
    # Classes are the differences -3 to 2. A length is at least 1. A source with fewer lengths repeats its best.
    assert best.tolist() == [[8, 10, 11, 12], [2, 3, 4, 1], [1, 2, 3, 1]]


def test_bounds_decide_where_no_class_is_possible():
    logits = torch.randn(2, 6)
    best = predictor(decoder_length_min=9, decoder_length_max=12).best(logits, torch.tensor([1, 100]), 2)
    assert best.tolist() == [[9, 9], [12, 12]]


def test_no_more_lengths_are_decoded_than_are_possible(monkeypatch):
    assert most_lengths([10, 2, 1], predictor_config()) == 6
    assert most_lengths([10, 2, 1], predictor_config(), shortest=9, longest=11) == 3
    assert most_lengths([2, 1], predictor_config()) == 4
    assert most_lengths([1, 100], predictor_config(decoder_length_min=9, decoder_length_max=12)) == 1
    assert most_lengths([], predictor_config()) == 1
    model = bnb_model(**PREDICTED)
    inputs, opened, open_slots = padded_form(source_ids(LENGTHS)), [], model.model.open
    monkeypatch.setattr(
        model.model, "open", lambda encoded, lengths: opened.append(lengths) or open_slots(encoded, lengths)
    )
    wanted = model.generate(**inputs, length_beam=3, max_length=4, return_scores=True)
    opened.clear()
    output = model.generate(**inputs, length_beam=5000, max_length=4, return_scores=True)
    assert [len(lengths) for lengths in opened] == [9], "one batch, and as many lengths as the source of one token has"
    assert torch.equal(output.sequences, wanted.sequences)
    assert torch.equal(output.scores, wanted.scores)


def test_loss_is_the_cross_entropy_of_slots_and_lengths():
    model = bnb_model(**PREDICTED, kl_weight=0.2, length_loss_weight=0.5)
    sources, targets = source_ids(LENGTHS), source_ids([5, 2, 11], seed=3)
    output = model(**padded_form(sources, targets), return_logits=True)
    assert output.decoder_lengths.tolist() == [5, 2, 11]
    length_logits = model.model(**padded_form(sources)).length_logits
    total, length_nll = 0.0, []
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        log_probs = output.logits[row, : len(target)].log_softmax(-1)
        smoothing = -log_probs.mean(-1).mean() - math.log(log_probs.shape[-1])
        difference = min(max(len(target) - len(source), -3), 2) + 3
        length_nll.append(-length_logits[row].log_softmax(-1)[difference])
        own = F.nll_loss(log_probs, target) + 0.2 * smoothing + 0.5 * length_nll[-1]
        total = total + len(target) * own
    torch.testing.assert_close(output.loss_sum, total)
    assert (output.loss_count, output.num_infeasible) == (18, 0)
    torch.testing.assert_close(output.loss, total / 18)
    torch.testing.assert_close(output.length_loss, torch.stack(length_nll).mean())


def test_every_parameter_is_trained():
    model = bnb_model(**PREDICTED).train()
    model(**packed_form(source_ids(LENGTHS), source_ids([5, 2, 11]))).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.model.length_predictor.parameters())


def test_a_beam_keeps_the_length_of_the_highest_mean_log_probability():
    model = bnb_model(**PREDICTED)
    sources = source_ids(LENGTHS)
    got = model.generate(**padded_form(sources), length_beam=4)
    for row, source in enumerate(sources):
        encoded = model.model.encode(model.model.pack(source[None]))
        candidates = model.model.predicted_lengths(encoded, 4)[0]
        outputs = []
        for length in candidates.tolist():
            # Labels of that length give that many slots.
            labels = torch.full((1, length), 5)
            best, ids = model(source[None], labels=labels, return_logits=True).logits[0].log_softmax(-1).max(-1)
            outputs.append((best.mean().item(), ids.tolist()))
        expected = max(outputs)[1]
        assert got[row].tolist() == expected + [0] * (got.shape[1] - len(expected))


def test_greedy_takes_the_most_probable_length_and_every_slot():
    model = bnb_model(**PREDICTED)
    source = source_ids([9])[0][None]
    output = model(source)
    assert model.generate(source).tolist() == output.logits.argmax(-1).tolist()
    best = model.model(source).length_logits[0].argmax().item()
    assert output.decoder_lengths.item() == 9 - 3 + best


@pytest.mark.parametrize(
    ("config", "beam", "message"),
    [({}, 2, "length_beam is 2: .* model"), (PREDICTED, 0, "length_beam is 0: give a whole number of at least 1")],
)
def test_a_beam_of_lengths_that_cannot_be(config, beam, message):
    with pytest.raises(ConfigError, match=message):
        bnb_model(**config).generate(source_ids([3])[0][None], length_beam=beam)


def test_an_empty_target_is_refused():
    labels = torch.tensor([[5, 6], [-100, -100]])
    with pytest.raises(ValueError, match="labels: an empty target has no decoder slot"):
        bnb_model(**PREDICTED)(**padded_form(source_ids([3, 4])), labels=labels)
