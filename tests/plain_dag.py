"""Graphs of slots in the most obvious ways, for tests only: enumeration of paths, and plain loops with autograd."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor


def links_of(scores_LL: Tensor) -> Tensor:
    """Log-softmax of each slot's scores over later slots; -inf elsewhere, and gradients without NaN."""
    rows = []
    for slot, row in enumerate(scores_LL):
        before = row.new_full((slot + 1,), -math.inf)
        rows.append(torch.cat((before, row[slot + 1 :].log_softmax(0))))
    return torch.stack(rows)


def random_links(num_slots: int, seed: int = 0, sigma: float = 1.0) -> Tensor:
    """float64 [L, L]."""
    generator = torch.Generator().manual_seed(seed)
    return links_of(sigma * torch.randn(num_slots, num_slots, dtype=torch.float64, generator=generator))


def random_problem(
    lengths: list[int], targets: list[int], sigma: float, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Emissions [B, L, S], links [B, L, L] and lengths; where a padded place lies, stand numbers not to be read."""
    generator = torch.Generator().manual_seed(len(lengths))
    longest = max(lengths)
    links = torch.full((len(lengths), longest + 3, longest + 3), torch.nan, dtype=torch.float64)
    for row, (length, graph) in enumerate(zip(lengths, links, strict=True)):
        graph[:longest, :longest] = -torch.inf
        graph[:length, :length] = random_links(length, row, sigma)
    emissions = (2 * torch.randn(len(lengths), longest, max(targets), generator=generator, dtype=torch.float64)) - 4
    links = links[:, :longest, :longest]
    return emissions.to(dtype), links.to(dtype), torch.tensor(lengths), torch.tensor(targets)


def paths(num_slots: int, length: int | None = None) -> Iterator[tuple[int, ...]]:
    """All ways from the first slot to the last, or those of ``length`` slots."""
    if num_slots == 1:
        if length in (None, 1):
            yield (0,)
        return
    for count in range(num_slots - 1) if length is None else [length - 2] if length >= 2 else []:
        for inner in itertools.combinations(range(1, num_slots - 1), count):
            yield (0, *inner, num_slots - 1)


def path_log_prob(links_LL: Tensor, path: tuple[int, ...]) -> Tensor:
    """[], of the links alone."""
    return sum((links_LL[pair] for pair in itertools.pairwise(path)), links_LL.new_zeros(()))


def joint_log_prob(log_probs_LV: Tensor, links_LL: Tensor, path: tuple[int, ...], target: list[int]) -> Tensor:
    """[], of a path and the target that it emits."""
    emitted = sum(log_probs_LV[slot, token] for slot, token in zip(path, target, strict=True))
    return emitted + path_log_prob(links_LL, path)


def brute_force_nll(log_probs_LV: Tensor, links_LL: Tensor, target: list[int]) -> Tensor:
    """Sum over all paths of as many slots as the target has tokens."""
    every = [joint_log_prob(log_probs_LV, links_LL, path, target) for path in paths(len(links_LL), len(target))]
    return -torch.logsumexp(torch.stack(every), 0) if every else links_LL.new_tensor(math.inf)


def brute_force_best(log_probs_LV: Tensor, links_LL: Tensor, target: list[int]) -> tuple[tuple[int, ...], float]:
    """The best of these paths."""
    every = [(joint_log_prob(log_probs_LV, links_LL, p, target).item(), p) for p in paths(len(links_LL), len(target))]
    log_prob, path = max(every)
    return path, log_prob


def output_probabilities(
    log_probs_LV: Tensor, links_LL: Tensor, *, merge_duplicates: bool = False
) -> dict[tuple[int, ...], float]:
    """The probability of every output, summed over paths."""
    probabilities: dict[tuple[int, ...], float] = defaultdict(float)
    vocab_size = log_probs_LV.shape[1]
    for path in paths(len(links_LL)):
        for tokens in itertools.product(range(vocab_size), repeat=len(path)):
            text = tuple(token for token, _ in itertools.groupby(tokens)) if merge_duplicates else tokens
            probabilities[text] += math.exp(joint_log_prob(log_probs_LV, links_LL, path, list(tokens)))
    return dict(probabilities)


def plain_nll(log_probs_LV: Tensor, links_LL: Tensor, target: list[int]) -> Tensor:
    """The forward recursion, slot by slot, over slots that can be reached only."""
    num_slots = len(links_LL)
    ways = {0: log_probs_LV[0, target[0]]} if num_slots and target else {}
    for token in target[1:]:
        arriving = defaultdict(list)
        for source, log_prob in ways.items():
            for slot in range(source + 1, num_slots):
                if links_LL[source, slot] > -math.inf:
                    arriving[slot].append(log_prob + links_LL[source, slot])
        ways = {
            slot: torch.logsumexp(torch.stack(values), 0) + log_probs_LV[slot, token]
            for slot, values in arriving.items()
        }
    return -ways[num_slots - 1] if num_slots - 1 in ways else links_LL.new_tensor(math.inf)


def plain_linear_dag(
    rows: list[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    links: list[Tensor],
    targets: list[list[int]],
    *,
    reduction: str = "mean",
) -> Tensor:
    """Projection, ``log_softmax`` and the recursion, one [n, H] sequence at a time; infeasible ones add 0."""
    losses = []
    for hidden, links_LL, target in zip(rows, links, targets, strict=True):
        logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
        nll = plain_nll(logits.log_softmax(-1), links_LL, target)
        losses.append(nll if nll < math.inf else hidden.sum() * 0)
    losses = torch.stack(losses)
    lengths = torch.tensor([max(len(target), 1) for target in targets])
    if reduction == "none":
        return losses
    if reduction in ("sum", "token_sum"):
        return losses.sum()
    return (losses / lengths).mean() if reduction == "mean" else (losses / lengths).sum()
