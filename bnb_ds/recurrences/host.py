"""The last resort of a recurrence over positions, where no kernel does all of its steps in one launch.

A step of such a recurrence is a few operations on small tensors: emissions of a target's own tokens, links, the
candidates of a beam. On a GPU each operation costs a launch, some 5 microseconds however small it is, and a thousand
positions cost thousands of launches. So the operands are copied to the host at once, the recurrence runs there, and its
results are copied back: the number of launches does not depend on the number of positions, and the host waits once.

exp and logsumexp for what is mostly -inf are here too, because only a host takes long for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bnb_ds.common.packing import on_host


def through_host(recurrence: Callable[..., Sequence[Tensor | None]], *operands: Tensor | None) -> tuple[Any, ...]:
    """``recurrence(*operands)``, worked out on the host.

    Gradients pass if all operands have one dtype; backward then waits once for each result and for the operands.

    Args:
        recurrence: takes tensors on a CPU and returns tensors on a CPU; it may return None for some.
        operands: tensors of one device, on which the results come back; None is handed on.
    """
    given = [tensor for tensor in operands if tensor is not None]
    device = given[0].device
    there = iter(on_host(given))
    results = recurrence(*(None if tensor is None else next(there) for tensor in operands))
    return tuple(None if tensor is None else to_device(tensor, device) for tensor in results)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device; the host waits at most for the copy, and for what was launched before it."""
    return tensor if tensor.device == device else tensor.to(device, non_blocking=True)


def exp_of_shares_(logs: Tensor) -> Tensor:
    """exp in place, of the logarithms of shares of 1; a share below the third power of the rounding becomes 0.

    No sum of shares feels it. But a CPU takes up to a hundred times as long for the exp of -inf and of other numbers
    whose exp is no normal number, and for products with what is hardly normal. Other devices get the plain exp.
    """
    if logs.device.type != "cpu":
        return logs.exp_()
    least = torch.finfo(logs.dtype).eps ** 3
    return torch.threshold_(logs.clamp_(min=math.log(least)).exp_(), 1.01 * least, 0.0)


def logsumexp_(logs: Tensor, dim: int) -> Tensor:
    """logsumexp over a dimension by `exp_of_shares_`: -inf where all are. Overwrites its argument."""
    highest = logs.amax(dim, keepdim=True)
    finite = torch.where(highest == -torch.inf, 0.0, highest)
    # The highest share is 1. Where all numbers are -inf, the logarithm of 0 would take a CPU long.
    total = exp_of_shares_(logs.sub_(finite)).sum(dim).clamp_(min=1.0)
    return total.log_().add_(highest.squeeze(dim))
