"""Token types of sources of two texts."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import bnb_model, padded_form


@pytest.mark.parametrize("fields", [{}, {"decoder_length": "predicted"}, {"target": "dag", "decoder_tokens": True}])
def test_a_model_that_tells_two_texts_apart_needs_no_token_types(fields):
    if fields.get("decoder_tokens"):
        fields = {**fields, "mask_token_id": 4, "bos_token_id": 2, "eos_token_id": 3}
    model = bnb_model(**fields)
    sources = [torch.tensor([2, 9, 3, 8, 7, 3]), torch.tensor([2, 9, 3]), torch.tensor([2, 6, 6, 3, 5, 3])]
    types = [torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 0]), torch.tensor([0, 0, 0, 0, 1, 1])]
    inputs = padded_form(sources)
    with torch.no_grad():
        given = model(**inputs, token_type_ids=padded_form(types)["input_ids"])
        plain = model(**inputs)
        written = model.generate(**inputs, token_type_ids=padded_form(types)["input_ids"])
        model.config.pair_separator_id = 3
        for output in (model(**inputs), model(**inputs, token_type_ids=torch.zeros_like(inputs["input_ids"]))):
            torch.testing.assert_close(output.encoder_last_hidden_state, given.encoder_last_hidden_state)
            torch.testing.assert_close(output.logits, given.logits)
        assert (plain.encoder_last_hidden_state - given.encoder_last_hidden_state).abs().max() > 1e-3
        assert torch.equal(model.generate(**inputs), written)
