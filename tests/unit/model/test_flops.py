"""forward_flops against torch's own counter of the operations that the model runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bnb_ds.model.flops import TRAINING_FACTOR, forward_flops
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration
from tests.backbones import checkpoint_model
from tests.tiny import ENCODER_ALONE, bnb_config, bnb_model, packed_form, source_ids

UNLIKE_HALVES = {
    "encoder": {"num_hidden_layers": 3},
    "decoder": {"hidden_size": 14, "num_attention_heads": 2, "intermediate_size": 9, "vocab_size": 31},
}


def counted(model, lengths, backward=False):
    inputs = packed_form(source_ids(lengths))
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        output = model(**inputs)
        if backward:
            output.logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("halves", [{}, UNLIKE_HALVES], ids=["like halves", "unlike halves"])
@pytest.mark.parametrize("ratio", [2.0, 0.7])
@pytest.mark.parametrize("lengths", [[11], [7, 7, 7]])
def test_equals_torchs_counter_without_padding(halves, ratio, lengths):
    model = bnb_model(decoder_length_ratio=ratio, **halves)
    slots = [int(np.ceil(round(ratio * 10) * n / 10)) for n in lengths]
    assert forward_flops(model.config, np.array(lengths), np.array(slots)) == counted(model, lengths)


@pytest.mark.parametrize("masks", [1, 2])
def test_equals_torchs_counter_without_a_decoder(masks):
    model = bnb_model(**ENCODER_ALONE, decoder_length_ratio=masks + 1, encoder={"num_hidden_layers": 3})
    lengths = np.array([7, 7])
    assert forward_flops(model.config, lengths, lengths * (masks + 1)) == counted(model, [7, 7])


@pytest.mark.parametrize("family", ["electra", "roberta"])
def test_equals_torchs_counter_for_other_backbones(family):
    half = checkpoint_model(family).config
    for fields in ({"deep_supervision": True}, {"decoder_length": "predicted", "length_difference_max": 0}):
        config = BnbConfig(half, half, 5, decoder_length_ratio=1.0, length_difference_min=0, **fields)
        model = BnbForConditionalGeneration(config).eval()
        assert forward_flops(config, np.array([7, 7]), np.array([7, 7])) == counted(model, [7, 7])


def test_equals_torchs_counter_with_a_head_behind_every_layer():
    model = bnb_model(deep_supervision=True, decoder={"num_hidden_layers": 3})
    assert forward_flops(model.config, np.array([7, 7]), np.array([14, 14])) == counted(model, [7, 7])
    graph = {"target": "dag", "decoder": {"num_hidden_layers": 3}}
    plain, deep = (
        forward_flops(bnb_config(**graph, deep_supervision=deep), np.array([7]), np.array([14]))
        for deep in (False, True)
    )
    head, feedback = 2 * 14 * 12 * (12 + 53), 2 * 14 * 24 * 12
    links = 2 * 14 * 24 * (24 + 3) + 2 * 14 * 14 * 12
    assert deep - plain == 2 * (head + feedback + links)


def test_equals_torchs_counter_with_length_classification():
    model = bnb_model(decoder_length="predicted", length_difference_min=-2, length_difference_max=2)
    lengths = np.array([7, 7, 7])
    slots = model(**packed_form(source_ids(lengths.tolist()))).decoder_lengths.numpy()
    padded_slots = np.full(3, slots.max())  # this way also computes padding, but only real slots count
    if slots.min() == slots.max():
        assert forward_flops(model.config, lengths, padded_slots) == counted(model, lengths.tolist())
    assert forward_flops(model.config, lengths, slots) <= counted(model, lengths.tolist())


def test_equals_torchs_counter_without_latents_and_head_transform():
    fields = {"decoder_latent": False, "head_transform": False, "decoder_tokens": True, "mask_token_id": 4}
    model = bnb_model(decoder_length="predicted", length_difference_min=2, length_difference_max=2, **fields)
    assert forward_flops(model.config, np.array([7, 7]), np.array([9, 9])) == counted(model, [7, 7])
    more = forward_flops(model.config, np.array([7, 7]), np.array([9, 9]), decoder_passes=3)
    encoder = forward_flops(model.config, np.array([7, 7]), np.array([0, 0]), decoder_passes=0)
    assert more - encoder == 3 * (forward_flops(model.config, np.array([7, 7]), np.array([9, 9])) - encoder)


def test_training_is_three_forwards(monkeypatch):
    # The other way on a CPU computes attention weights twice. The second time does not count as the model's work.
    monkeypatch.setattr("bnb_ds.model.attention.attention_way", lambda *_: "padded")
    model = bnb_model().train()
    forward = counted(model, [11])
    # The embeddings have gradients, so every product, even the first, has two in backward: exactly twice forward.
    assert counted(model, [11], backward=True) == TRAINING_FACTOR * forward


def test_sequences_add_up_and_padding_is_not_counted():
    config = bnb_config()
    whole = forward_flops(config, np.array([3, 9], np.uint16), torch.tensor([6, 18]))
    assert whole == forward_flops(config, [3], [6]) + forward_flops(config, [9], [18])
    assert isinstance(whole, int)


def test_large_batches_do_not_overflow():
    lengths = np.full(4096, 512, np.int32)
    one = forward_flops(bnb_config(), lengths[:1], 2 * lengths[:1])
    assert forward_flops(bnb_config(), lengths, 2 * lengths) == 4096 * one
