"""What an implementation of attention computes with. Shapes: A heads, D head size; Nq and Nk tokens of all queries and
keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from bnb_ds.common.packing import PackedLayout


class AttentionInputs(NamedTuple):
    """Packed queries, keys and values, and how they are attended to.

    A named tuple, because torch's compiler follows one without help.

    Attributes:
        query_NAD: float [Nq, A, D].
        key_NAD: float [Nk, A, D].
        value_NAD: float [Nk, A, D].
        layout: layout of the queries.
        key_layout: layout of the keys; in self-attention the same object.
        dropout: probability that a weight is dropped, at least 0 and below 1.
        scaling: factor on the scores; None: ``D ** -0.5``.
        window: in self-attention, the largest distance of a key from its query, in tokens; None: all keys are read.
    """

    query_NAD: Tensor
    key_NAD: Tensor
    value_NAD: Tensor
    layout: PackedLayout
    key_layout: PackedLayout
    dropout: float = 0.0
    scaling: float | None = None
    window: int | None = None

    @property
    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values."""
        return self.query_NAD, self.key_NAD, self.value_NAD


#: -> float [Nq, A, D]
Way = Callable[[AttentionInputs], Tensor]
