"""Groups sources of similar length into batches within a token budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.slots import decoder_lengths

#: device type -> default number of source tokens and decoder slots of one batch
DEFAULT_TOKEN_BUDGET = {"cpu": 4096, "cuda": 65536}


def plan_batches(source_lengths: Sequence[int], config: BnbConfig, token_budget: int) -> list[list[int]]:
    """Indices of the sources of each batch, sorted by length, longest first. Equal lengths keep their order.

    The padded size of a batch is its number of sources times the longest one's tokens and slots. It stays within the
    budget, unless the batch is a single source.

    Args:
        source_lengths: real tokens of each source, at least 1.
        config: gives the slots of a source.
        token_budget: source tokens and decoder slots together.
    """
    if not source_lengths:
        return []
    lengths = np.asarray(source_lengths, dtype=np.int64)
    costs = lengths + decoder_lengths(lengths, config)
    order = np.argsort(-lengths, kind="stable").tolist()
    batches: list[list[int]] = [[]]
    for index in order:
        batch = batches[-1]
        if batch and (len(batch) + 1) * costs[batch[0]] > token_budget:
            batches.append([index])
        else:
            batch.append(index)
    return batches


def default_token_budget(device: torch.device) -> int:
    """The default token budget of a device."""
    return DEFAULT_TOKEN_BUDGET.get(device.type, DEFAULT_TOKEN_BUDGET["cuda"])
