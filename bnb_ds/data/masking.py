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
import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout, lowest_of_each
from bnb_ds.common.randomness import DRAWS, draws_at, packed_draws, stream_keys

#: streams of draws, beside those of `bnb_ds.data.batch`
_NUMBER_DRAWS, _PLACE_DRAWS = 32, 33


def masked_tokens(lengths: np.ndarray, sample_keys: np.ndarray) -> Tensor:
    """bool [M], the tokens to predict.

    Args:
        lengths: int64 [B], tokens of each target, at least 1.
        sample_keys: uint64 [B], the random key of each sample.
    """
    draws = draws_at(stream_keys(sample_keys, _NUMBER_DRAWS), np.zeros(lengths.size, np.uint32)).astype(np.int64)
    numbers_B = torch.from_numpy(1 + draws * lengths // DRAWS)
    layout = PackedLayout.from_host(lengths, torch.device("cpu"))
    places = packed_draws(stream_keys(sample_keys, _PLACE_DRAWS), np.concatenate(([0], np.cumsum(lengths))))
    everywhere_M = torch.ones(places.size, dtype=torch.bool)
    return lowest_of_each(everywhere_M, numbers_B, torch.from_numpy(places.astype(np.float64)), layout)
