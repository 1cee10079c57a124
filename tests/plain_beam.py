"""CTC outputs and their probabilities by enumeration of all paths, and a prefix beam search: slow but simple."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
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


def prefix_beam(
    log_probs_TV: Tensor,
    blank: int,
    beam_size: int,
    num_classes: int,
    allows: Callable[[tuple[int, ...]], bool] = lambda prefix: True,
) -> dict[tuple[int, ...], float]:
    """The prefixes that a search keeps to the end, and their log-probabilities."""
    beam = {(): (-math.inf, 0.0)}  # of alignments that end in the last token, and of those that end in a blank
    for row in log_probs_TV.double().tolist():
        others = [token for token in range(len(row)) if token != blank]
        classes = sorted(others, key=lambda token: -row[token])[:num_classes]
        grown: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [-math.inf, -math.inf])
        for prefix, (in_token, in_blank) in beam.items():
            total = np.logaddexp(in_token, in_blank)
            grown[prefix][1] = np.logaddexp(grown[prefix][1], total + row[blank])
            for token in classes:
                is_repeat = prefix[-1:] == (token,)
                if is_repeat:
                    grown[prefix][0] = np.logaddexp(grown[prefix][0], in_token + row[token])
                longer = (*prefix, token)
                if allows(longer):
                    before = in_blank if is_repeat else total
                    grown[longer][0] = np.logaddexp(grown[longer][0], before + row[token])
        ranked = sorted(grown, key=lambda prefix: -np.logaddexp(*grown[prefix]))[:beam_size]
        beam = {prefix: tuple(grown[prefix]) for prefix in ranked if np.logaddexp(*grown[prefix]) > -math.inf}
    return {prefix: float(np.logaddexp(*both)) for prefix, both in beam.items()}
