"""The number of slots of each source, and the source token and position of each slot."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from bnb_ds.errors import ConfigError
from bnb_ds.model.slots import decoder_lengths, distinct_slots, open_slots
from tests.plain_reference import plain_slots
from tests.tiny import bnb_config, layout_of


@pytest.mark.parametrize("ratio", [2.0, 1.1, 0.3, 1 / 3, 1, 0.0625, 1e-05])
def test_numpy_and_torch_agree_with_exact_arithmetic(ratio):
    config = bnb_config(decoder_length_ratio=ratio, decoder_length_offset=-2, decoder_length_max=700)
    lengths = np.arange(1, 513)
    exact = [min(max(math.ceil(Fraction(str(ratio)) * n) - 2, 1), 700) for n in range(1, 513)]
    for dtype in (np.int64, np.int32, np.uint32, np.uint16):
        assert decoder_lengths(lengths.astype(dtype), config).tolist() == exact
    slots = decoder_lengths(torch.from_numpy(lengths).int(), config)
    assert slots.dtype == torch.int64
    assert slots.tolist() == exact


def test_a_ratio_is_what_it_says_in_decimal():
    # In binary floating point 1.1 * 10 is 11.000000000000002, whose ceiling would be 12.
    assert decoder_lengths(np.array([10]), bnb_config(decoder_length_ratio=1.1)).tolist() == [11]


def test_a_plain_number_is_a_length_too():
    assert int(decoder_lengths(7, bnb_config(decoder_length_ratio=1.5))) == 11


@pytest.mark.parametrize("positions", ["absolute", "shared"])
@pytest.mark.parametrize(("ratio", "fraction"), [(2.0, (2, 1)), (1.3, (13, 10)), (0.4, (2, 5)), (2.7, (27, 10))])
def test_slots_equal_a_loop(positions, ratio, fraction):
    lengths = [7, 1, 8]
    config = bnb_config(decoder_positions=positions, decoder_length_ratio=ratio, decoder_length_offset=1)
    slots = open_slots(layout_of(lengths), config)
    expected = [plain_slots(n, fraction, 1, positions == "shared") for n in lengths]
    assert slots.layout.lengths.tolist() == [len(rows) for rows in expected]
    starts = [0, 7, 8]
    flat = [(start + row[0], *row[1:]) for start, rows in zip(starts, expected, strict=True) for row in rows]
    got = zip(*(t.tolist() for t in (slots.source_index, slots.position_ids, slots.token_type_ids)), strict=True)
    assert list(got) == flat


def test_more_slots_than_absolute_positions_name_the_ways_out():
    message = (
        "a source of 13 tokens needs 26 decoder slots, but the decoder has 24 positions: "
        "set decoder_positions to 'shared', lower decoder_length_ratio, set decoder_length_max, or cut the source"
    )
    with pytest.raises(ConfigError, match=message):
        open_slots(layout_of([3, 13]), bnb_config(decoder_positions="absolute"))


def test_shared_positions_hold_more_slots_than_embeddings():
    slots = open_slots(layout_of([24]), bnb_config(decoder_positions="shared"))
    assert slots.layout.num_tokens == 48
    assert slots.position_ids.max() == 23
    assert slots.token_type_ids.tolist() == [0, 1] * 24


@pytest.mark.parametrize("positions", ["absolute", "shared"])
@pytest.mark.parametrize("fields", [{"ratio": 2.0}, {"ratio": 2.7}, {"offset": 3}, {"ratio": 0.5, "min": 9}], ids=str)
def test_slots_that_are_equal_count_once(positions, fields):
    config = bnb_config(
        decoder_positions=positions, **{f"decoder_length_{name}": value for name, value in fields.items()}
    )
    lengths = [1, 2, 3, 4, 5, 8]
    slots = open_slots(layout_of(lengths), config)
    rows = zip(slots.source_index.tolist(), slots.position_ids.tolist(), slots.token_type_ids.tolist(), strict=True)
    owners = slots.layout.sequence_ids.tolist()
    inputs = [set() for _ in lengths]
    for owner, row in zip(owners, rows, strict=True):
        inputs[owner].add(row)
    assert distinct_slots(slots.layout.lengths, torch.tensor(lengths), config).tolist() == list(map(len, inputs))
    of_numpy = distinct_slots(decoder_lengths(np.array(lengths), config), np.array(lengths, np.uint16), config)
    assert of_numpy.tolist() == list(map(len, inputs))


@pytest.mark.parametrize("fields", [{"target": "dag"}, {"decoder_length": "predicted"}], ids=str)
def test_slots_that_differ_otherwise_all_count(fields):
    config = bnb_config(decoder_length_ratio=3.0, **fields)
    assert distinct_slots(np.array([9]), np.array([3]), config).tolist() == [9]


def test_shared_positions_need_one_for_each_source_token():
    config = bnb_config(encoder={"max_position_embeddings": 99})
    message = (
        "a source has 25 tokens, but the decoder has 24 positions: cut the source, or set decoder_positions to 'abs"
    )
    with pytest.raises(ConfigError, match=message):
        open_slots(layout_of([25]), config)
