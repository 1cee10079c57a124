"""Early exit: at decoding, a slot whose prediction is sure keeps its state in all layers behind.

Shapes: T decoder slots of all sequences together, H hidden size.

Source: Li et al., ELMER, EMNLP 2022 (hard early exit).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class EarlyExit:
    """Follows the slots of one pass through the decoder's layers.

    Args:
        entropies: from the hidden states [T, H] of a layer to the entropy of each slot's prediction, float [T], in nats.
        threshold: a slot leaves behind the first layer whose prediction has an entropy below this.
    """

    def __init__(self, entropies: Callable[[Tensor], Tensor], threshold: float) -> None:
        self._entropies = entropies
        self._threshold = threshold
        self._kept: Tensor | None = None
        self._has_left: Tensor | None = None

    def held(self, hidden_TH: Tensor) -> Tensor:
        """The states [T, H] behind a layer: those of slots that have left are as when they left."""
        if self._has_left is None or self._kept is None:
            return hidden_TH
        return torch.where(self._has_left[:, None], self._kept, hidden_TH)

    def leave(self, hidden_TH: Tensor) -> Tensor:
        """Let sure slots leave with the states that `held` returned; bool [], whether all slots have left."""
        leaves_T = self._entropies(hidden_TH) < self._threshold
        self._has_left = leaves_T if self._has_left is None else self._has_left | leaves_T
        self._kept = hidden_TH
        return self._has_left.all()
