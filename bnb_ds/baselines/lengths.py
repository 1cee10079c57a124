"""Outputs of given lengths, whatever a model would write: for fair measurements of speed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor


class ExactLengths(LogitsProcessor):
    """Each output ends exactly where it is told to: the end token is forced there, and nowhere before.

    It touches two columns of the scores and the rows that end, so that it costs next to nothing beside the model.

    Args:
        lengths: tokens of each output, the one that ends it included, the start token not.
        num_beams: hypotheses of each.
        eos_id: ends an output.
        pad_id: comes after the end, and is not written before it.
    """

    def __init__(self, lengths: Sequence[int], num_beams: int, eos_id: int, pad_id: int) -> None:
        self._lengths = [length for length in lengths for _ in range(num_beams)]
        self._eos_id = eos_id
        self._ends = sorted({eos_id, pad_id})

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores float [R, V] of R rows' next token, changed in place."""
        number = input_ids.shape[1]  # of the next token; the start token is number 0
        scores[:, self._ends] = -torch.inf
        ending = [row for row, length in enumerate(self._lengths) if number >= length]
        if ending:
            scores[ending] = -torch.inf
            scores[ending, self._eos_id] = 0.0
        return scores
