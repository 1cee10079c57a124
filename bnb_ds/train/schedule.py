"""Learning-rate schedule. The multiplier is a pure function of the step, so a resumed run needs no saved state."""

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
    """Return the multiplier as a function of the step: linear warm-up to 1, then decay to ``final_ratio``.

    Args:
        total_steps: optimizer steps of the whole run.
        warmup_ratio: fraction of ``total_steps`` spent on warm-up (0.05 in the reference).
        decay: shape of the decay.
        final_ratio: multiplier at ``total_steps``; ignored with ``constant``.

    Returns:
        A function from the 0-based step to the multiplier. The step counts weight updates: a step that is skipped
        after an fp16 overflow does not count. The multiplier of step 0 is already above 0.
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
