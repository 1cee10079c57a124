"""Which segments of a text an infilling sample leaves out, for a whole batch in a few vectorised passes.

The source keeps the rest of the text, with one [MASK] in the place of each segment. The target is the segments, in
their order, with a [MASK] between them. So a target is a small part of the text, as a summary or an answer is.

Shapes: B texts; G segments at most.

Source: Huang et al., Directed Acyclic Transformer Pre-training for High-quality Non-autoregressive Text Generation,
TACL 2023. Their targets also begin with a token of the segment's number.
"""

from __future__ import annotations

import numpy as np

from bnb_ds.common.randomness import DRAWS, draws_at, stream_keys

MOST_SEGMENTS = 6
_SHORTEST_MEAN = 4  # tokens of a segment, on average
_BETWEEN = 8  # tokens between two segments, at least

_STREAM_SIZES, _STREAM_GAPS = 8, 9  # the other streams are corruption's


def segments(lengths: np.ndarray, share: float, sample_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The segments of each text.

    Args:
        lengths: int64 [B], tokens of each text.
        share: of the tokens that segments hold together, rounded, but at least one token.
        sample_keys: uint64 [B], the random key of each sample.

    Returns:
        int64 [B, G], where each segment begins in its text; and int64 [B, G], its tokens, 0 if there is none.
    """
    held = np.minimum(np.maximum(np.floor(share * lengths + 0.5).astype(np.int64), 1), lengths)
    rest = lengths - held
    most = np.minimum(np.minimum(held // _SHORTEST_MEAN, rest // _BETWEEN + 1), MOST_SEGMENTS + 1)
    number = np.minimum(np.maximum(most - 1, 1), held)
    place = np.arange(MOST_SEGMENTS)
    is_there = place < number[:, None]
    # Every segment gets one token, and cuts at random share out the others. The last cut is their end.
    ends = _sorted_draws(held - number, number - 1, sample_keys, _STREAM_SIZES)
    sizes = np.where(is_there, np.diff(ends, axis=1, prepend=0) + 1, 0)
    slack = rest - _BETWEEN * np.maximum(number - 1, 0)
    before = _sorted_draws(slack, number, sample_keys, _STREAM_GAPS) + _BETWEEN * place
    begins = before + np.cumsum(sizes, axis=1) - sizes
    return np.where(is_there, begins, 0), sizes


def _sorted_draws(limits: np.ndarray, numbers: np.ndarray, sample_keys: np.ndarray, stream: int) -> np.ndarray:
    """int64 [B, G], as many draws from 0 to the limit as the number says, sorted; then the limit itself."""
    keys = np.repeat(stream_keys(sample_keys, stream), MOST_SEGMENTS)
    counters = np.tile(np.arange(MOST_SEGMENTS), limits.size)
    draws = draws_at(keys, counters).astype(np.int64).reshape(-1, MOST_SEGMENTS)
    values = draws * (limits[:, None] + 1) // DRAWS
    return np.sort(np.where(np.arange(MOST_SEGMENTS) < numbers[:, None], values, limits[:, None]), axis=1)
