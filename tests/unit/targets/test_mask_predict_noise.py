"""Mask-predict's noise in training: how many tokens are seen is uniform, whatever the model gets wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bnb_ds.common.packing import PackedLayout
from bnb_ds.config.sections import GlancingSection
from bnb_ds.errors import ConfigError
from bnb_ds.model.target_rules import check_glancing
from bnb_ds.targets.glancing import seen_by_mask_predict
from bnb_ds.train.objectives import Glancing, ObjectiveSettings, Reconstruction
from tests.tiny import bnb_config, bnb_model, source_ids
from tests.unit.model.test_deep_supervision import batch_of

TOKEN = {"decoder_length": "predicted", "decoder_tokens": True, "mask_token_id": 4}


def draws(number: int, length: int) -> torch.Tensor:
    """Of 24 bits, as batches have them."""
    words = np.random.default_rng(0).integers(0, 2**24, number * length)
    return torch.from_numpy(words.astype(np.float32) / np.float32(2**24))


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_none_to_all_but_one_of_the_tokens_are_seen_equally_often(share, length):
    number = 20_000
    layout = PackedLayout.from_lengths(torch.full((number,), length), num_tokens=number * length, max_seqlen=length)
    given = torch.ones(number * length, dtype=torch.bool)
    seen = seen_by_mask_predict(given, draws(number, length), share, layout).unflatten(0, (number, length))
    counts = seen.sum(1).bincount(minlength=length + 1) / number
    expected = torch.tensor([*[share / length] * length, 1 - share])
    torch.testing.assert_close(counts, expected, rtol=0, atol=0.015)
    if length == 5 and share == 1.0:  # and each slot is one of them as often as any other, whatever their number
        for count in range(1, 5):
            places = seen[seen.sum(1) == count].float().mean(0)
            torch.testing.assert_close(places, torch.full((5,), count / 5), rtol=0, atol=0.04)


def test_it_depends_on_the_draws_of_a_sequence_alone():
    lengths = [3, 1, 6, 4]
    every = draws(1, sum(lengths))
    given = torch.rand(sum(lengths), generator=torch.Generator().manual_seed(1)) < 0.5
    layout = PackedLayout.from_lengths(torch.tensor(lengths), num_tokens=sum(lengths), max_seqlen=6)
    together = seen_by_mask_predict(given, every, 0.6, layout)
    for part, own, alone in zip(*(values.split(lengths) for values in (every, given, together)), strict=True):
        single = PackedLayout.from_lengths(torch.tensor([len(part)]), num_tokens=len(part), max_seqlen=len(part))
        assert torch.equal(seen_by_mask_predict(own, part, 0.6, single), alone)


def test_a_model_is_trained_on_the_tokens_that_it_does_not_see():
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = bnb_model(**TOKEN, encoder=quiet, decoder=quiet).train()
    source, labels = torch.stack(source_ids([4, 4])), torch.tensor([[2, 9, 12, 7, 3], [2, 8, 8, 9, 3]])
    given = {"labels": labels, "glance_ratio": 0.0, "glance_draws": draws(2, 5)}
    plain, masked = (model(source, **given, **more).loss_sum.item() for more in ({}, {"mask_share": 1.0}))
    assert plain == model(source, labels=labels).loss_sum.item()
    assert masked != plain
    shown = []
    model.model.decoder.embeddings.register_forward_hook(lambda _, inputs, __: shown.append(inputs[1].token_ids))
    model(source, **given, mask_share=1.0)
    first, second = (tokens.unflatten(0, (2, 5)) for tokens in shown)
    assert (first == 4).all()
    seen = seen_by_mask_predict(
        torch.zeros(10, dtype=torch.bool),
        given["glance_draws"],
        1.0,
        PackedLayout.from_lengths(torch.tensor([5, 5]), num_tokens=10, max_seqlen=5),
    ).unflatten(0, (2, 5))
    assert torch.equal(second, torch.where(seen, labels, 4))


def test_the_objective_hands_it_on():
    schedule = GlancingSection(start=0.5, end=0.5, mask_predict=0.25)

    given = {"input_ids": torch.tensor([2, 3]), "labels": torch.tensor([2, 3]), "cu_seqlens": torch.tensor([0, 2])}
    batch = batch_of(np.array([5], np.uint64), np.array([2]), **given)
    objective = Reconstruction(
        ObjectiveSettings(Glancing(lambda step: schedule.ratio(step, 10), schedule.mask_predict))
    )
    inputs = objective.inputs(batch, torch.device("cpu"), 1)
    assert (inputs["glance_ratio"], inputs["mask_share"]) == (0.5, 0.25)
    plain = Reconstruction(ObjectiveSettings(Glancing(lambda step: 0.5))).inputs(batch, torch.device("cpu"), 1)
    assert "mask_share" not in plain


def test_other_targets_have_no_such_noise():
    check_glancing(bnb_config(**TOKEN), 0.5)
    with pytest.raises(
        ConfigError, match=r"glancing\.mask_predict is 0\.5, and mask-predict needs one token for each pos"
    ):
        check_glancing(bnb_config(decoder_tokens=True, mask_token_id=4), 0.5)
    model = bnb_model(decoder_tokens=True, mask_token_id=4).train()
    with pytest.raises(
        ValueError, match=r"mask_share is 0\.5: give a number from 0 to 1, above 0 only to target 'token'"
    ):
        model(source_ids([4])[0][None], labels=torch.tensor([[2, 3]]), mask_share=0.5)
    with pytest.raises(ValueError, match="mask_predict"):
        GlancingSection(mask_predict=1.5)
