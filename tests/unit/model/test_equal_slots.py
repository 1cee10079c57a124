"""Slots that are equal to the last bit, with shared positions: they write one token, and are no room for a target."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bnb_ds.model.target_rules import BnbTargetRules
from tests.tiny import bnb_model, packed_form, source_ids


def test_slots_beyond_two_for_a_token_are_equal_to_the_last_bit():
    output = bnb_model(decoder_length_ratio=3.0)(**packed_form(source_ids([4])), return_logits=True)
    first, second, third = output.logits.unflatten(0, (4, 3)).unbind(1)
    assert torch.equal(second, third)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("fields", [{"ratio": 3.0}, {"ratio": 1.0, "min": 10}], ids=str)
def test_slots_that_are_equal_are_no_room_for_a_target(fields):
    """Three source tokens have six different slots with shared positions, however many slots there are."""
    settings = {f"decoder_length_{name}": value for name, value in fields.items()}
    model = bnb_model(**settings, kl_weight=0.1)
    rules = BnbTargetRules(model.config)
    source, fits, too_long = source_ids([3])[0], torch.tensor([5, 6, 6, 7, 8]), torch.tensor([5, 6, 6, 7, 8, 9])
    (slots,) = rules.slots(np.array([3]), np.array([5]))
    assert slots > 7, "the raw slots would do for both"
    output = model(**packed_form([source, source], [fits, too_long]))
    assert (output.num_infeasible, output.loss_count) == (1, 5)
    targets, ends = torch.cat((fits, too_long)).numpy(), np.array([0, 5, 11])
    assert rules.fits(targets, ends, np.full(2, slots), np.full(2, 3)).tolist() == [True, False], "as the loader counts"
    alone = model(**packed_form([source], [fits]))
    torch.testing.assert_close(output.loss_sum, alone.loss_sum)
    output.loss_sum.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    alone.loss_sum.backward()
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
