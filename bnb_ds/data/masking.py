"""The noise of mask-predict: the decoder sees some tokens of a target, and predicts the others.

How many are masked is uniform from one to all of them; then each choice of that many is equally probable. All draws
belong to a sample, so they do not depend on ranks or micro batches. (``glancing.mask_predict`` has the same chances in
the second pass of glancing. Here there is one pass, and the host knows how many tokens have a loss.)

Shapes: B sequences, M target tokens of all sequences together.

Source: Ghazvininejad et al., Mask-Predict, EMNLP 2019. In its code all tokens are never masked, although decoding
begins so; here they can be.
"""

from __future__ import annotations

import numpy as np

from bnb_ds.common.randomness import DRAWS, draws_at, packed_draws, stream_keys

#: streams of draws, beside those of `bnb_ds.data.batch`
_NUMBER_DRAWS, _PLACE_DRAWS = 32, 33


def masked_tokens(cu_seqlens: np.ndarray, sample_keys: np.ndarray) -> np.ndarray:
    """bool [M], the tokens to predict.

    Args:
        cu_seqlens: int64 [B + 1], where each target begins; each has a token.
        sample_keys: uint64 [B], the random key of each sample.
    """
    lengths = np.diff(cu_seqlens)
    draws = draws_at(stream_keys(sample_keys, _NUMBER_DRAWS), np.zeros(lengths.size, np.uint32)).astype(np.int64)
    numbers = 1 + draws * lengths // DRAWS
    rows = np.repeat(np.arange(lengths.size), lengths)
    # The tokens with the lowest draws of each sequence; of equal draws, the first ones.
    order = np.lexsort((packed_draws(stream_keys(sample_keys, _PLACE_DRAWS), cu_seqlens), rows))
    is_masked = np.empty(rows.size, dtype=bool)
    is_masked[order] = np.arange(rows.size) - np.repeat(cu_seqlens[:-1], lengths) < np.repeat(numbers, lengths)
    return is_masked
