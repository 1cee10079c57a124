"""Counts the matrix FLOPs of the model on real tokens. MFU is this number per second, divided by the hardware's peak.

Only matrix products count, with 2 m n k for [m, k] @ [k, n]: linear layers, attention scores and values, latent, LM
head. Embeddings, norms, activations, softmax and the CTC recursion do not count. Padding does not count either, even if
it was computed.
"""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedConfig

from bnb_ds.model.backbones.entries import backbone_of
from bnb_ds.model.configuration import BnbConfig

#: FLOPs of forward and backward, relative to forward. Backward has two products for each product of forward.
TRAINING_FACTOR = 3


def forward_flops(
    config: BnbConfig, source_lengths: np.ndarray, decoder_lengths: np.ndarray, *, decoder_passes: int = 1
) -> int:
    """Matrix FLOPs of one forward pass, LM head included. Training takes `TRAINING_FACTOR` times that.

    With ``deep_supervision`` each decoder layer that predicts has the head, and the links of a graph, as in training.
    Generation needs the links of the last layer only.

    Args:
        config: the model's configuration.
        source_lengths: int [B], real tokens of each source.
        decoder_lengths: int [B], decoder slots of each source.
        decoder_passes: passes of the decoder and its head; the encoder runs once.
    """
    source_B, slots_B = np.asarray(source_lengths, np.int64), np.asarray(decoder_lengths, np.int64)
    num_source, num_slots = int(source_B.sum()), int(slots_B.sum())
    encoder, decoder = config.encoder, config.decoder
    total = _layers(encoder, source_B)
    cross = linear_flops(num_slots, decoder.hidden_size, 2 * decoder.hidden_size)  # query and output
    cross += linear_flops(num_source, decoder.hidden_size, 2 * decoder.hidden_size)  # key and value
    cross += attention_flops(int((slots_B * source_B).sum()), decoder.hidden_size)
    layers = _layers(decoder, slots_B) + decoder.num_hidden_layers * cross
    word_size = backbone_of(decoder).word_size(decoder)
    total += linear_flops(num_source, encoder.hidden_size, config.latent_size)
    if config.decoder_length == "predicted":
        classes = config.length_difference_max - config.length_difference_min + 1
        total += linear_flops(source_B.size, config.latent_size, classes)
        if config.decoder_latent:
            total += linear_flops(int((slots_B * source_B).sum()), config.latent_size, 1)  # stretched latents
            total += linear_flops(num_slots, config.latent_size, word_size)
    else:
        total += linear_flops(num_source, config.latent_size, word_size)
    links = 0
    if config.target_kind == "dag":
        heads = config.link_heads or decoder.num_attention_heads
        links = linear_flops(num_slots, 2 * word_size, 2 * word_size + heads)
        links += attention_flops(int((slots_B * slots_B).sum()), word_size) // 2  # scores, but no values
    if encoder.hidden_size != decoder.hidden_size:
        total += linear_flops(num_source, encoder.hidden_size, decoder.hidden_size)
    num_heads = 1 + len(config.predicting_layers)
    layers += (num_heads - 1) * linear_flops(
        num_slots, decoder.hidden_size + word_size, decoder.hidden_size
    )  # feedback
    head = linear_flops(num_slots, word_size, decoder.vocab_size)
    if config.head_transform:
        head += linear_flops(num_slots, decoder.hidden_size, word_size)
    return total + decoder_passes * (layers + num_heads * (head + links))


def classification_flops(config: BnbConfig, source_lengths: np.ndarray) -> int:
    """Matrix FLOPs of one forward pass of `bnb_ds.model.classification.BnbForSequenceClassification`.

    Args:
        config: the model's configuration.
        source_lengths: int [B], real tokens of each source.
    """
    source_B = np.asarray(source_lengths, np.int64)
    encoder = config.encoder
    layers = _layers(encoder, source_B)
    return layers + linear_flops(source_B.size, encoder.hidden_size, encoder.hidden_size + config.num_labels)


def _layers(half: PreTrainedConfig, lengths_B: np.ndarray) -> int:
    """All layers of a half, without cross-attention; and the projection of word embeddings of another size."""
    backbone, num_tokens = backbone_of(half), int(lengths_B.sum())
    word_size = backbone.word_size(half)
    embedded = 0 if word_size == half.hidden_size else linear_flops(num_tokens, word_size, half.hidden_size)
    projections = linear_flops(num_tokens, half.hidden_size, 4 * half.hidden_size)  # query, key, value, output
    feed_forward = 2 * num_tokens * backbone.feed_forward_weights(half)
    pairs = attention_flops(backbone.attended_pairs(half, lengths_B), half.hidden_size)
    return embedded + half.num_hidden_layers * (projections + feed_forward) + pairs


def linear_flops(num_rows: int, num_in: int, num_out: int) -> int:
    """FLOPs of a linear layer over ``num_rows`` tokens."""
    return 2 * num_rows * num_in * num_out


def attention_flops(num_pairs: int, hidden_size: int) -> int:
    """FLOPs of attention over ``num_pairs`` pairs of query and key."""
    return 2 * (2 * num_pairs * hidden_size)  # scores, and the weighted sum of values
