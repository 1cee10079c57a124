"""CTC outputs and their probabilities by enumeration of all paths: slow but simple."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor


def collapsed(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def all_outputs(log_probs_TV: Tensor, blank: int) -> dict[tuple[int, ...], float]:
    """Log-probability of every output, from all V ** T paths."""
    num_slots, vocab_size = log_probs_TV.shape
    table = log_probs_TV.double().tolist()
    totals: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(vocab_size), repeat=num_slots):
        output = collapsed(path, blank)
        probability = math.exp(sum(table[slot][token] for slot, token in enumerate(path)))
        totals[output] = totals.get(output, 0.0) + probability
    return {output: math.log(probability) for output, probability in totals.items() if probability > 0}


def torch_score(log_probs_TV: Tensor, output: list[int], blank: int) -> float:
    """Log-probability of one output by torch's own CTC loss."""
    nll = torch.nn.functional.ctc_loss(
        log_probs_TV.double()[:, None],
        torch.tensor([output], dtype=torch.int64),
        torch.tensor([log_probs_TV.shape[0]]),
        torch.tensor([len(output)]),
        blank=blank,
        reduction="sum",
    )
    return -nll.item()
