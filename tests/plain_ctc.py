"""The CTC loss in its simplest forms, for tests only: by definition, by the textbook recursion, and by torch."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional as F


def simple_collapse(path: list[int], blank: int) -> list[int]:
    return [token for token, _ in itertools.groupby(path) if token != blank]


def brute_force_nll(log_probs_TV: Tensor, target: list[int], blank: int) -> Tensor:
    """Sum over all V^T paths that collapse to the target."""
    num_positions, vocab_size = log_probs_TV.shape
    if num_positions == 0:
        return log_probs_TV.new_tensor(0.0 if not target else math.inf)
    paths = [
        sum(log_probs_TV[t, token] for t, token in enumerate(path))
        for path in itertools.product(range(vocab_size), repeat=num_positions)
        if simple_collapse(list(path), blank) == target
    ]
    return -torch.logsumexp(torch.stack(paths), 0) if paths else log_probs_TV.new_tensor(math.inf)


def ctc_loss_reference(log_probs_TV: Tensor, target: list[int], blank: int) -> Tensor:
    """The forward recursion of Graves et al. (ICML 2006, section 4.1) over one sequence, state by state."""
    states = [blank, *itertools.chain.from_iterable((token, blank) for token in target)]
    if log_probs_TV.shape[0] == 0:
        return log_probs_TV.new_tensor(0.0 if not target else math.inf)
    paths = {state: log_probs_TV[0, states[state]] for state in range(min(2, len(states)))}
    for log_probs_V in log_probs_TV[1:]:
        now = {}
        for state, token in enumerate(states):
            steps = (0, 1, 2) if token != blank and state > 1 and token != states[state - 2] else (0, 1)
            before = [paths[state - step] for step in steps if state - step in paths]
            if before:
                now[state] = torch.logsumexp(torch.stack(before), 0) + log_probs_V[token]
        paths = now
    ends = [paths[state] for state in {len(states) - 1, len(states) - 2} if state in paths]
    return -torch.logsumexp(torch.stack(ends), 0) if ends else log_probs_TV.new_tensor(math.inf)


def plain_linear_ctc(
    rows: list[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    targets: list[list[int]],
    *,
    blank: int = 0,
    reduction: str = "mean",
    kl_weight: float = 0.0,
) -> Tensor:
    """Projection, ``log_softmax`` and torch's ``ctc_loss``, one [n, H] sequence at a time; infeasible ones add 0."""
    losses, divergences = [], []
    for hidden, target in zip(rows, targets, strict=True):
        logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
        log_probs = F.log_softmax(logits, -1)
        if hidden.shape[0]:
            labels, lengths = torch.tensor([target], dtype=torch.int64), torch.tensor([len(target)])
            positions = torch.tensor([hidden.shape[0]])
            options = {"blank": blank, "reduction": "none", "zero_infinity": True}
            losses.append(F.ctc_loss(log_probs[:, None], labels, positions, lengths, **options)[0])
        else:
            losses.append(hidden.sum())
        divergences.append(-log_probs.mean(-1) - math.log(weight.shape[0]))
    losses = torch.stack(losses)
    if reduction == "none":
        return losses
    lengths = torch.tensor([max(len(target), 1) for target in targets])
    if reduction == "mean":
        losses = losses / lengths / len(targets)
    if reduction in ("token_sum", "sample_sum"):
        counts = torch.ones(len(targets)) if reduction == "sample_sum" else _feasible_tokens(rows, targets)
        mean_divergences = torch.stack([kl_T.mean() if kl_T.numel() else kl_T.sum() for kl_T in divergences])
        per_token = losses / lengths if reduction == "sample_sum" else losses
        return per_token.sum() + kl_weight * (counts * mean_divergences).sum()
    kl = torch.cat(divergences).mean() if kl_weight else 0.0
    return losses.sum() + kl_weight * kl


def _feasible_tokens(rows: list[Tensor], targets: list[list[int]]) -> Tensor:
    """Target tokens of each sequence; 0 if its positions cannot hold them."""
    needed = [len(target) + sum(a == b for a, b in itertools.pairwise(target)) for target in targets]
    return torch.tensor(
        [len(target) if need <= row.shape[0] else 0 for row, target, need in zip(rows, targets, needed, strict=True)],
        dtype=torch.float64,
    )
