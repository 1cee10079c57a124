"""generate: greedy CTC over all slots at once."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.tiny import VOCAB, bnb_model, packed_form, padded_form, source_ids

LENGTHS = [7, 1, 10]


def greedy(model, source):
    """The best token of each slot of one source, with repeats merged and blanks dropped."""
    path = model(source[None]).logits[0].argmax(-1).tolist()
    return [token for token, _ in itertools.groupby(path) if token != model.config.blank_token_id]


@pytest.mark.parametrize("blank", [0, 9])
def test_rows_are_the_greedy_outputs_of_each_source_alone(blank):
    model = bnb_model(blank_token_id=blank)
    with torch.no_grad():
        model.lm_head.bias[blank] += 2  # so that there are blanks to drop
    sources = source_ids(LENGTHS)
    ids = model.generate(**padded_form(sources))
    expected = [greedy(model, source) for source in sources]
    assert ids.dtype == torch.int64
    assert ids.shape == (3, max(map(len, expected)))
    for row, tokens in zip(ids.tolist(), expected, strict=True):
        assert row == tokens + [0] * (len(row) - len(tokens))
    assert len(set(map(len, expected))) > 1


def test_pad_token_fills_up_where_the_blank_is_another():
    model = bnb_model(blank_token_id=9, pad_token_id=50)
    ids = model.generate(**padded_form(source_ids(LENGTHS)))
    assert ids[1, -1] == 50
    model.config.pad_token_id = None
    assert model.generate(**padded_form(source_ids(LENGTHS)))[1, -1] == 0


def test_without_a_mask_padding_is_what_is_pad():
    model = bnb_model()
    inputs = padded_form(source_ids(LENGTHS))
    assert torch.equal(model.generate(inputs["input_ids"]), model.generate(**inputs))


def test_token_types_are_heard():
    model = bnb_model()
    inputs = padded_form(source_ids(LENGTHS))
    assert not torch.equal(model.generate(**inputs), model.generate(**inputs, token_type_ids=inputs["attention_mask"]))


def test_an_output_of_blanks_is_empty():
    model = bnb_model()
    with torch.no_grad():
        model.lm_head.bias[0] += 1e3
    assert model.generate(**padded_form(source_ids(LENGTHS))).shape == (3, 0)


def test_nothing_is_recorded_and_the_mode_stays():
    model = bnb_model().train()
    ids = model.generate(**padded_form(source_ids(LENGTHS)))
    assert ids.is_inference()
    assert model.training


@pytest.mark.slow
def test_a_trained_model_writes_back_what_it_read():
    torch.manual_seed(0)
    model = bnb_model(dtype=torch.float32).train()
    sources = [torch.randperm(VOCAB - 4)[:length] + 4 for length in (6, 3, 8, 5)]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(200):
        loss = model(**packed_form(sources, sources)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids = model.eval().generate(**padded_form(sources))
    assert loss < 0.5
    assert [row[row != 0].tolist() for row in ids] == [source.tolist() for source in sources]
