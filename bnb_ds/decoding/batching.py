"""Groups sources of similar length into batches within a token budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.slots import decoder_lengths

#: device type -> default number of source tokens and decoder slots of one batch
DEFAULT_TOKEN_BUDGET = {"cpu": 4096, "cuda": 65536}


def source_costs(source_lengths: Sequence[int], config: BnbConfig, num_hypotheses: int = 1) -> np.ndarray:
    """What each source adds to a batch, int64: its tokens, and its slots once for each hypothesis.

    Args:
        source_lengths: real tokens of each source, at least 1.
        config: gives the slots of a source.
        num_hypotheses: of each source; `bnb_ds.decoding.options.DecodeOptions.num_hypotheses`.
    """
    lengths = np.asarray(source_lengths, dtype=np.int64)
    return lengths + decoder_lengths(lengths, config) * num_hypotheses


def plan_batches(
    source_lengths: Sequence[int], config: BnbConfig, token_budget: int, num_hypotheses: int = 1
) -> list[list[int]]:
    """Indices of the sources of each batch, sorted by length, longest first. Equal lengths keep their order.

    The padded size of a batch is its number of sources times what the longest one costs. It stays within the budget,
    unless the batch is a single source.

    Args:
        source_lengths, config, num_hypotheses: as in `source_costs`.
        token_budget: source tokens and decoder slots together.
    """
    if not source_lengths:
        return []
    lengths = np.asarray(source_lengths, dtype=np.int64)
    costs = source_costs(source_lengths, config, num_hypotheses)
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
