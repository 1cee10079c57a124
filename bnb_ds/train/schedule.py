"""Learning-rate multiplier: a pure function of the step, so a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal


def learning_rate_multiplier(
    total_steps: int,
    *,
    warmup_ratio: float = 0.05,
    decay: Literal["linear", "cosine", "constant"] = "linear",
    final_ratio: float = 0.0,
) -> Callable[[int], float]:
    """Return ``f(step)``: linear warm-up to 1, then decay to ``final_ratio`` at ``total_steps``.

    Args:
        total_steps: optimizer steps of the whole run.
        warmup_ratio: share of ``total_steps`` spent warming up (the reference trains with 0.05).
        decay: shape after the warm-up.
        final_ratio: multiplier at ``total_steps``; it has no effect with ``constant``.

    Returns:
        A function of the 0-based step, which counts the updates made: a step that an fp16 overflow skips does
        not advance it. Step 0 of a warm-up already has a positive rate, so no step is wasted.
    """
    warmup_steps = round(total_steps * warmup_ratio)

    def multiplier(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if decay == "constant":
            return 1.0
        progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
        shape = 1.0 - progress if decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return final_ratio + (1.0 - final_ratio) * shape

    return multiplier
