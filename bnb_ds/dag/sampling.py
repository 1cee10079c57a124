"""Drawing an output from a graph of slots: a path by its links, then a token for each slot on it.

Whoever asks gives the random numbers, one for each slot and use, so that an output does not depend on what else is
decoded with it.

Shapes: B sequences, L slots of the longest, K choices of one draw.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bnb_ds.common.randomness import DRAWS, draws_at, stream_keys

#: streams of a graph's draws: which link is taken from a slot, and which token a slot writes
LINK_DRAWS, TOKEN_DRAWS = 0, 1


def slot_uniforms(keys: np.ndarray, stream: int, num_slots: int, device: torch.device) -> Tensor:
    """float64 [B, L], in [0, 1): draw j of a sequence's stream belongs to its slot j.

    Args:
        keys: uint64 [B], hashes.
        stream: `LINK_DRAWS` or `TOKEN_DRAWS`.
        num_slots: L.
        device: of the result.
    """
    of_slots = np.repeat(stream_keys(keys, stream), num_slots)
    draws = draws_at(of_slots, np.tile(np.arange(num_slots), keys.size)).reshape(keys.size, num_slots)
    return torch.from_numpy(draws.astype(np.float64) / DRAWS).to(device, non_blocking=True)


def draw(log_probs: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """int64 [...], a choice from each distribution; 0 where nothing is possible.

    Choices are in order of their probability. The first ones that hold ``top_p`` of it together are left.

    Args:
        log_probs: float [..., K], need not be normalised; -inf for what is impossible.
        uniforms: float64 [...], in [0, 1).
        temperature: divides log-probabilities, above 0; below 1 sharpens them.
        top_p: above 0, at most 1.
    """
    ordered, order = log_probs.double().sort(dim=-1, descending=True, stable=True)
    # The best choice is at 0, where no temperature, however low, makes it impossible.
    probs = ((ordered - ordered[..., :1]) / temperature).softmax(-1).nan_to_num(0.0)
    total = probs.cumsum(-1)
    # A choice is left if the ones before it do not hold enough; so the first one always is.
    probs = torch.where(total - probs < top_p, probs, 0.0)
    total = probs.cumsum(-1)
    index = (total <= uniforms[..., None] * total[..., -1:]).sum(-1, keepdim=True)
    # By rounding the last number may be passed.
    return order.gather(-1, torch.minimum(index, ((probs > 0).sum(-1, keepdim=True) - 1).clamp(min=0)))[..., 0]
