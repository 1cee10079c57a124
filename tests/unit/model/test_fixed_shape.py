"""The model on padded rows gives the same outputs as the model on packed rows."""

from __future__ import annotations

import pytest
import torch

from bnb_ds.ctc.greedy import collapse
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.errors import ConfigError
from bnb_ds.generate.engines import CompiledEngine, TorchEngine
from bnb_ds.model.fixed_shape import RectangularBnb, num_slot_columns
from bnb_ds.model.slots import decoder_lengths
from tests.tiny import ENCODER_ALONE, bnb_config, bnb_model, padded_form, source_ids

LENGTHS = [7, 1, 10, 3]
SHAPES = [
    {},
    {"decoder_length": "padded"},
    {"decoder_length_ratio": 0.4, "decoder_length_min": 3, "decoder_length_max": 5},
    {"decoder_length_ratio": 1.1, "decoder_length_offset": 2, "decoder_positions": "absolute"},
    {"decoder": {"hidden_size": 18}},
    ENCODER_ALONE,
]


@pytest.mark.parametrize("fields", SHAPES, ids=str)
def test_outputs_are_those_of_packed_execution(fields):
    model = bnb_model(**fields)
    inputs = padded_form(source_ids(LENGTHS))
    with torch.no_grad():
        path = RectangularBnb(model)(inputs["input_ids"], inputs["attention_mask"])
    ids, lengths = collapse(path, torch.full((4,), path.shape[1]), model.config.blank_token_id)
    assert torch.equal(ids[:, : int(lengths.max())], model.generate(**inputs))


def test_pairs_have_the_token_types_of_packed_execution():
    model = bnb_model()
    inputs = padded_form(source_ids(LENGTHS))
    model.config.pair_separator_id = int(inputs["input_ids"][0, 2])
    with torch.no_grad():
        path = RectangularBnb(model)(inputs["input_ids"], inputs["attention_mask"])
        model(**inputs)
    ids, lengths = collapse(path, torch.full((4,), path.shape[1]), model.config.blank_token_id)
    written = model.generate(**inputs)
    assert torch.equal(ids[:, : int(lengths.max())], written)
    model.config.pair_separator_id = None
    assert not torch.equal(model.generate(**inputs), written), "types make a difference"


GRAPHS = [
    {"target": "dag"},
    {
        "target": "dag",
        "decoder_length_ratio": 1.5,
        "decoder_positions": "absolute",
        "decoder_tokens": True,
        "mask_token_id": 4,
    },
]


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("fields", GRAPHS, ids=str)
def test_outputs_of_graphs_are_those_of_packed_execution(fields, beta):
    model = bnb_model(**fields)
    inputs = padded_form(source_ids(LENGTHS))
    with torch.no_grad():
        path = RectangularBnb(model)(inputs["input_ids"], inputs["attention_mask"], torch.tensor(beta))
    strategy = {"strategy": "lookahead", "lookahead_beta": beta} if beta else {"strategy": "greedy"}
    expected = model.generate(**inputs, **strategy)
    assert torch.equal(path[:, : expected.shape[1]].clamp(min=0), expected)
    assert (path[:, expected.shape[1] :] == -1).all()


@pytest.mark.parametrize("fields", SHAPES[:4], ids=str)
@pytest.mark.parametrize("num_columns", [1, 2, 7, 24])
def test_slot_columns_are_the_policys(fields, num_columns):
    config = bnb_config(**fields)
    assert num_slot_columns(num_columns, config) == decoder_lengths(torch.tensor(num_columns), config)


def test_the_blank_is_lowered_as_the_model_was_saved_with():
    model = bnb_model(decoder_length_ratio=2.0, decoding={"blank_penalty": 2.0})
    with torch.no_grad():
        model.lm_head.bias[model.config.blank_token_id] += 3.0
    inputs = padded_form(source_ids(LENGTHS))
    with torch.no_grad():
        best = RectangularBnb(model)(inputs["input_ids"], inputs["attention_mask"])
    rows = [source.tolist() for source in source_ids(LENGTHS)]
    options = DecodeOptions.of_model(model.config)
    assert options.blank_penalty == 2.0
    expected = TorchEngine(model).decode(rows, options)
    ids, ends = collapse(best, torch.full((len(rows),), best.shape[1]), model.config.blank_token_id)
    assert [row[:end] for row, end in zip(ids.tolist(), ends.tolist(), strict=True)] == [out for out, _ in expected]
    assert expected != TorchEngine(model).decode(rows, DecodeOptions())
    engine = CompiledEngine(model)
    engine.check(options, with_scores=False)
    with pytest.raises(ConfigError, match="only decodes greedily"):
        engine.check(DecodeOptions(blank_penalty=1.0), with_scores=False)


def test_length_classification_is_refused():
    with pytest.raises(ConfigError, match="only models with decoder_length 'source' can be compiled or"):
        RectangularBnb(bnb_model(decoder_length="predicted"))


@pytest.mark.slow
def test_the_compiled_model_writes_the_same_and_compiles_few_shapes():
    model = bnb_model(dtype=torch.float32, encoder={"num_hidden_layers": 1}, decoder={"num_hidden_layers": 1})
    rows = [source.tolist() for source in source_ids([20, 17, 24])]
    options = DecodeOptions(token_budget=1000)
    expected = TorchEngine(model).decode(rows, options)
    engine = CompiledEngine(model)
    torch._dynamo.utils.counters.clear()
    assert engine.decode(rows, options) == expected
    assert engine.decode(rows[:1], options) == expected[:1]
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert engine.decode(rows[::-1], options) == expected[::-1]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled == 2
