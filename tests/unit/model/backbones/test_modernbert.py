"""What ModernBERT has and others have not: windows, rotary positions, long sources, and a decoder with a new part."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bnb_ds.errors import ConfigError
from bnb_ds.model.backbones.entries import backbone_of
from bnb_ds.model.backbones.modernbert import rotated
from bnb_ds.model.flops import forward_flops
from bnb_ds.model.from_bert import read_bert
from bnb_ds.modeling import BnbForConditionalGeneration, BnbForPretraining
from tests.backbones import checkpoint_model, padded, save_checkpoint
from tests.tiny import layout_of, packed_form, source_ids

LONG = {"max_position_embeddings": 900, "num_hidden_layers": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints: a ModernBERT of long sources, and a BERT of 24 positions and another size."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save_checkpoint(folder / "long", "modernbert", **LONG)
    save_checkpoint(folder / "bert", "minilm")
    return folder


def start(folder, decoder="bert", model_class=BnbForConditionalGeneration, **fields):
    torch.manual_seed(1)
    slots = {"decoder_positions": "absolute", "decoder_length_ratio": 0.5, "decoder_length_max": 24}
    return model_class.from_bert(folder / "long", folder / decoder, **{**slots, **fields})


@pytest.mark.parametrize("lengths", [[5, 1, 40], [400, 2, 130], [900]], ids=str)
def test_states_and_gradients_are_transformers_own(folder, lengths):
    """Sequences of fewer and of more tokens than the ways with a window begin at."""
    ours, theirs = start(folder), checkpoint_model("modernbert", **LONG).base_model
    ids, mask = padded(source_ids(lengths), 0)
    expected = theirs(ids, attention_mask=mask).last_hidden_state[mask.bool()]
    got = ours(ids, mask).encoder_last_hidden_state[mask.bool()]
    assert (got - expected).abs().max() < 1e-5
    signal = torch.randn(got.shape, generator=torch.Generator().manual_seed(3))
    for name in ("attn.Wqkv", "mlp.Wi"):
        weights = ours.model.encoder.layer[1].get_submodule(name).weight, theirs.layers[1].get_submodule(name).weight
        gradients = [
            torch.autograd.grad(states, weight, signal, retain_graph=True)[0]
            for states, weight in zip((got, expected), weights, strict=True)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "rope",
    [{"rope_type": "linear", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0}],
    ids=lambda rope: rope["rope_type"],
)
@torch.no_grad()
def test_other_frequencies_are_transformers_own(tmp_path, rope):
    parameters = {"rope_parameters": {"full_attention": {**rope, "rope_theta": 1000.0}}}
    save_checkpoint(tmp_path, "modernbert", **parameters)
    model = BnbForConditionalGeneration.from_bert(tmp_path, decoder_positions="absolute", decoder_length_ratio=1.0)
    ids = source_ids([20])[0][None]
    expected = checkpoint_model("modernbert", **parameters).base_model(ids).last_hidden_state
    assert (model(ids).encoder_last_hidden_state - expected).abs().max() < 1e-5


def test_frequencies_that_depend_on_the_batch_are_refused(tmp_path):
    rope = {"full_attention": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000.0}}
    save_checkpoint(tmp_path, "modernbert", rope_parameters=rope)
    message = "rope_type is 'dynamic', where the longest sequence of a batch changes what all others compute: give a"
    with pytest.raises(ConfigError, match=message):
        BnbForConditionalGeneration.from_bert(tmp_path)


def test_sixteen_bits_do_not_round_positions(folder):
    """Position 899 times a frequency needs more than the 8 bits of bf16: angles stay those of float32."""
    model = start(folder)
    layout = layout_of([900])
    hidden = torch.zeros(1, 900, 12)
    exact = model.model.encoder.context(hidden, layout.position_ids, layout)["rotations"]
    rounded = model.bfloat16().model.encoder.context(hidden.bfloat16(), layout.position_ids, layout)["rotations"]
    for name, rotation in exact.items():
        assert all(torch.equal(got, expected) for got, expected in zip(rounded[name], rotation, strict=True))
    assert torch.isfinite(model(source_ids([900])[0][None]).logits).all()


def test_a_long_source_needs_no_cut_for_a_short_decoder(folder):
    model = start(folder).double()
    sources = source_ids([900, 3, 300])
    together = model(**packed_form(sources))
    assert together.decoder_lengths.tolist() == [24, 2, 24]
    alone = torch.cat([model(**packed_form([source])).logits for source in sources])
    assert torch.allclose(together.logits, alone, rtol=0, atol=1e-12)
    with pytest.raises(ConfigError, match="a source has 901 tokens, but the encoder has 900 positions: cut the source"):
        model(source_ids([901])[0][None])
    message = (
        "a source has 25 tokens, but the decoder has 24 positions: cut the source, or set decoder_positions to 'abs"
    )
    with pytest.raises(ConfigError, match=message):
        start(folder, decoder_positions="shared")(source_ids([25])[0][None])


def test_checkpointed_activations_give_the_same_gradients(folder):
    model = start(folder, decoder="long", decoder_length_max=None).double().train()
    inputs = packed_form(source_ids([70, 9]), source_ids([4, 2], seed=2))
    plain, again = {}, {}
    for gradients in (plain, again):
        model.zero_grad()
        model(**inputs).loss.backward()
        gradients.update({name: p.grad.clone() for name, p in model.named_parameters()})
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert all(torch.allclose(plain[name], again[name], rtol=0, atol=1e-12) for name in plain)
    layer = model.model.encoder.layer[0]
    assert layer.gradient_checkpointing


def test_pairs_are_those_of_the_masks(folder):
    config = read_bert(folder / "long").config
    lengths = np.array([1, 3, 4, 7, 23])
    expected = 0
    for length in lengths:
        places = np.arange(length)
        near = np.abs(places[:, None] - places) <= config.sliding_window
        expected += sum(near.sum() if kind == "sliding_attention" else near.size for kind in config.layer_types)
    assert backbone_of(config).attended_pairs(config, lengths) == expected
    assert config.layer_types.count("sliding_attention") == 2


def test_a_gate_is_counted(folder):
    """FLOPs of one source: twice what a wider feed-forward layer adds."""
    config = start(folder).config
    wider = copy.deepcopy(config)
    wider.encoder.intermediate_size += 1
    more = forward_flops(wider, [7], [3]) - forward_flops(config, [7], [3])
    assert more == 2 * 7 * 3 * config.encoder.hidden_size * config.encoder.num_hidden_layers


def test_heads_without_a_bias_or_with_a_matrix_of_their_own(tmp_path):
    plain = save_checkpoint(tmp_path / "plain", "modernbert", decoder_bias=False)
    model = BnbForPretraining.from_bert(plain, decoder_positions="absolute", decoder_length_ratio=1.0)
    theirs = checkpoint_model("modernbert", decoder_bias=False)
    ids = source_ids([9])[0][None]
    states = model(ids).encoder_last_hidden_state
    for head in (model.encoder_mlm_head, model.lm_head):
        logits = F.linear(head(states), model.get_input_embeddings().weight, head.bias)
        assert (logits - theirs(ids).logits).abs().max() < 1e-5
    assert read_bert(save_checkpoint(tmp_path / "own", "modernbert", tie_word_embeddings=False)).head is None


def test_new_matrices_at_the_end_of_a_part_begin_smaller(folder):
    layer = start(folder, decoder="long", decoder_length_max=None).model.decoder.layer[0]
    new, inner = layer.crossattention.Wo.weight, layer.crossattention.Wq.weight
    assert 0.25 < new.std() / inner.std() < 0.5  # 1 / sqrt(2 * 4 layers)


@torch.no_grad()
def test_a_decoders_layer_is_the_formula(folder):
    """Norm, self-attention; norm, cross-attention at the places of the source; norm, gated feed-forward layer."""
    model = start(folder, decoder="long", decoder_length_ratio=1.5, decoder_length_max=None).double()
    decoder, config = model.model.decoder, model.config.decoder
    layout, memory_layout = layout_of([9, 4]), layout_of([6, 3])
    generator = torch.Generator().manual_seed(5)
    hidden, memory = (torch.randn(n, 12, dtype=torch.float64, generator=generator) for n in (13, 9))
    context = decoder.context(hidden[None], layout.position_ids, layout, memory_layout)
    got, expected, layers = hidden[None], hidden, decoder.layer
    for layer in layers:
        got = layer(got, None, memory[None], layout=layout, memory_layout=memory_layout, **context)
        rows = zip(expected.split([9, 4]), memory.split([6, 3]), strict=True)
        expected = torch.cat([_plain_layer(layer, slots, source, config) for slots, source in rows])
    assert (got[0] - expected).abs().max() < 1e-6


def _plain_layer(layer, hidden_TH, memory_NH, config):
    """One sequence alone, one head after the other."""
    count = hidden_TH.shape[0]
    places = torch.arange(count)
    window = (places[:, None] - places).abs() <= config.sliding_window
    is_local = layer.attention_type == "sliding_attention"
    theta = config.rope_parameters[layer.attention_type]["rope_theta"]
    query, key, value = layer.attn.Wqkv(layer.attn_norm(hidden_TH)).chunk(3, -1)
    mixed = _plain_attention(query, key, value, places, places, theta, window if is_local else None)
    hidden_TH = hidden_TH + layer.attn.Wo(mixed)
    cross, source = layer.crossattention, memory_NH.shape[0]
    query = cross.Wq(layer.crossattention_norm(hidden_TH))
    key, value = cross.Wkv(memory_NH).chunk(2, -1)
    theta = config.rope_parameters["full_attention"]["rope_theta"]
    mixed = _plain_attention(query, key, value, places * source / count, torch.arange(source), theta)
    hidden_TH = hidden_TH + cross.Wo(mixed)
    inner, gate = layer.mlp.Wi(layer.mlp_norm(hidden_TH)).chunk(2, -1)
    return hidden_TH + layer.mlp.Wo(F.gelu(inner) * gate)


def _plain_attention(query, key, value, query_places, key_places, theta, is_read=None):
    heads = []
    for q, k, v in zip(*(part.chunk(3, -1) for part in (query, key, value)), strict=True):
        q, k = (_turned(rows, places, theta) for rows, places in ((q, query_places), (k, key_places)))
        scores = q @ k.T / q.shape[-1] ** 0.5
        heads.append((scores if is_read is None else scores.masked_fill(~is_read, -torch.inf)).softmax(-1) @ v)
    return torch.cat(heads, -1)


def _turned(rows, places, theta):
    """Each pair of numbers as a complex one, turned by its angle."""
    half = rows.shape[-1] // 2
    angles = places[:, None].double() / theta ** (torch.arange(half).double() / half)
    turned = torch.complex(rows[:, :half], rows[:, half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), -1)


def test_scores_of_rotated_rows_depend_on_distances_alone():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 3, 8, dtype=torch.float64, generator=generator)
    scores = []
    for first, second in ((0, 5), (40, 45)):
        angles = [place / 100.0 ** (torch.arange(4.0).double() / 4).repeat(2)[None] for place in (first, second)]
        turned = [rotated(rows, (a.cos(), a.sin())) for rows, a in zip((query, key), angles, strict=True)]
        scores.append((turned[0] * turned[1]).sum(-1))
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-12)
