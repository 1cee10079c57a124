"""Matrix FLOPs of the baselines on real tokens, counted in the same way as in :mod:`bnb_ds.model.flops`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bnb_ds.model.flops import attention_flops, linear_flops


@dataclass(frozen=True)
class _Stack:
    """The shape of a stack of layers."""

    layers: int
    hidden: int
    feed_forward: int

    def flops(self, lengths_B: np.ndarray) -> int:
        """FLOPs of self-attention and feed-forward layers for sequences of int64 [B] tokens."""
        tokens, pairs = int(lengths_B.sum()), int((lengths_B * lengths_B).sum())
        layer = linear_flops(tokens, self.hidden, 4 * self.hidden) + attention_flops(pairs, self.hidden)
        return self.layers * (layer + 2 * linear_flops(tokens, self.hidden, self.feed_forward))


def seq2seq_flops(config: Any, source_lengths: np.ndarray, target_lengths: np.ndarray) -> int:
    """FLOPs of one forward pass of an encoder-decoder, for int [B] source and target tokens."""
    source_B, target_B = np.asarray(source_lengths, np.int64), np.asarray(target_lengths, np.int64)
    encoder, decoder, vocab_size = _stacks(config)
    num_source, num_target = int(source_B.sum()), int(target_B.sum())
    cross = linear_flops(num_target, decoder.hidden, 2 * decoder.hidden)
    cross += linear_flops(num_source, decoder.hidden, 2 * decoder.hidden)
    cross += attention_flops(int((target_B * source_B).sum()), decoder.hidden)
    head = linear_flops(num_target, decoder.hidden, vocab_size)
    return encoder.flops(source_B) + decoder.flops(target_B) + decoder.layers * cross + head


def classifier_flops(config: Any, source_lengths: np.ndarray) -> int:
    """FLOPs of one forward pass of a BERT or OpenAI GPT with a classification head, for int [B] tokens."""
    feed_forward = getattr(config, "intermediate_size", 4 * config.hidden_size)
    stack = _Stack(config.num_hidden_layers, config.hidden_size, feed_forward)
    source_B = np.asarray(source_lengths, np.int64)
    return stack.flops(source_B) + linear_flops(source_B.size, config.hidden_size, config.num_labels)


def _stacks(config: Any) -> tuple[_Stack, _Stack, int]:
    """The encoder, the decoder and the size of the target vocabulary."""
    if hasattr(config, "decoder"):
        halves = [
            _Stack(half.num_hidden_layers, half.hidden_size, half.intermediate_size)
            for half in (config.encoder, config.decoder)
        ]
        return (*halves, config.decoder.vocab_size)
    encoder = _Stack(config.encoder_layers, config.d_model, config.encoder_ffn_dim)
    decoder = _Stack(config.decoder_layers, config.d_model, config.decoder_ffn_dim)
    return encoder, decoder, getattr(config, "decoder_vocab_size", None) or config.vocab_size
