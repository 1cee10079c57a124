"""Expected matches of n-grams between the outputs of a graph and a target: a second phase of training.

With emissions P, links E and the target's distinct n-grams g, of which it holds c(g),

    p_0 = 1,  p_j = sum_i p_i E_ij                       how probably a path passes slot j
    x_1 = p * P(g_1), x_k = (x_{k-1} E) * P(g_k)         C(g) = sum_j x_n, the expected count of g
    N = p E^(n-1) 1, Length = sum_j p_j                  expected n-grams and tokens of an output
    loss = -min(1, exp(1 - S / Length)) * sum_g min(C(g), c(g)) / N

It clips expected counts, which is not the expectation of clipped counts. Everything is a probability or a sum of few,
so that products need no logarithms; float64 holds those of any graph.

Shapes: B sequences, L slots and S target tokens of the longest, N real slots of all sequences together, K columns (the
target tokens in order), G distinct n-grams of a target, H hidden size, V vocabulary.

Source: Ma et al., Fuzzy Alignments in Directed Acyclic Graph for Non-Autoregressive Machine Translation, ICLR 2023.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnb_ds.common.packing import on_host
from bnb_ds.ctc.autograd import scaled_gradients
from bnb_ds.ctc.inputs import check_reduction
from bnb_ds.ctc.ngram_matches import NO_SECOND_DERIVATIVE, NgramOutput
from bnb_ds.ctc.operands import compute_dtype
from bnb_ds.dag.autograd import LossOptions
from bnb_ds.dag.inputs import Targets
from bnb_ds.dag.loss import read_all


class NgramMatches(NamedTuple):
    """What a graph's outputs and its target have in common.

    Attributes:
        loss: [], minus the clipped precision times the brevity penalty; 0 where the target has no n-gram.
        passing: [L], probability that a path passes a slot.
        expected_length: [], tokens of an output.
        expected_ngrams: [], n-grams of an output.
        expected: [G], expected counts of the target's n-grams, in the order of their first places.
        matched: [], clipped and summed.
    """

    loss: Tensor
    passing: Tensor
    expected_length: Tensor
    expected_ngrams: Tensor
    expected: Tensor
    matched: Tensor


def ngram_matches(probs_LS: Tensor, links_LL: Tensor, target: list[int], size: int) -> NgramMatches:
    """Expected matches of one graph and its target; gradients flow to both tensors.

    Args:
        probs_LS: float64, probability of each target token at each slot.
        links_LL: float64, probability of each link, 0 where there is none.
        target: the ids of the S tokens.
        size: n.
    """
    counts = Counter(tuple(target[i : i + size]) for i in range(len(target) - size + 1))
    column = {token: target.index(token) for token in target}
    passing_L = passing(links_LL)
    length = passing_L.sum()
    chain_L = passing_L
    for _ in range(size - 1):
        chain_L = chain_L @ links_LL
    num_ngrams = chain_L.sum()
    if not counts:
        nothing = passing_L.new_zeros(0)
        return NgramMatches(probs_LS.sum() * 0, passing_L, length, num_ngrams, nothing, nothing.sum())
    columns_Gn = torch.tensor([[column[token] for token in ngram] for ngram in counts], device=probs_LS.device)
    state_GL = passing_L * probs_LS.T[columns_Gn[:, 0]]
    for place in range(1, size):
        state_GL = (state_GL @ links_LL) * probs_LS.T[columns_Gn[:, place]]
    expected_G = state_GL.sum(1)
    matched = torch.minimum(expected_G, expected_G.new_tensor(list(counts.values()))).sum()
    brevity = (1 - len(target) / length).clamp(max=0).exp()
    # Where no output has an n-gram, none matches.
    loss = -brevity * matched / num_ngrams.clamp(min=torch.finfo(num_ngrams.dtype).tiny)
    return NgramMatches(loss, passing_L, length, num_ngrams, expected_G, matched)


def passing(links_LL: Tensor) -> Tensor:
    """[L], probability that a path passes each slot: the first row of (I - E)^-1.

    ``links_LL``, E, holds the probability of each link; it is strictly triangular.
    """
    identity_LL = torch.eye(len(links_LL), dtype=links_LL.dtype, device=links_LL.device)
    solved = torch.linalg.solve_triangular(
        identity_LL - links_LL, identity_LL[:1], upper=True, unitriangular=True, left=False
    )
    return solved[0]


@torch.compiler.disable
def linear_dag_ngram_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    log_links: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None,
    target_lengths: Tensor,
    *,
    size: int = 2,
    reduction: str = "mean",
    chunk_tokens: int | None = None,
    cu_seqlens: Tensor | None = None,
    max_input_length: int | None = None,
    max_target_length: int | None = None,
) -> NgramOutput:
    """Minus the expected n-gram precision of a graph's outputs, with a brevity penalty; no [B, L, V] tensor exists.

    Arguments, their checks and dtypes as in `bnb_ds.dag.loss.linear_dag_loss`. Gradients are finished in the forward
    pass. Targets need not fit their graphs. A GPU must wait here for the targets.

    Args:
        size: n, at least 1.
        reduction: ``"mean"`` or ``"sum"`` of the sequences' losses.

    Raises:
        ValueError: ``size`` below 1, another reduction, or what `linear_dag_loss` refuses.
        TypeError, RuntimeError: as `linear_dag_loss`.
    """
    check_reduction(reduction)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}: the n-gram loss knows mean and sum")
    if size < 1:
        raise ValueError(f"size is {size}: give n-grams of at least 1 token")
    rows_NH, read, links_BLL = read_all(
        hidden,
        weight,
        bias,
        log_links,
        targets,
        input_lengths,
        target_lengths,
        chunk_tokens=chunk_tokens,
        cu_seqlens=cu_seqlens,
        max_input_length=max_input_length,
        max_target_length=max_target_length,
    )
    options = LossOptions(read, reduction, True, compute_dtype(rows_NH, weight), chunk_tokens)
    with torch.autocast(hidden.device.type, enabled=False):
        return NgramOutput(
            *_LinearNgramLoss.apply(rows_NH, weight, bias, links_BLL, options, size, torch.is_grad_enabled())
        )


class _LinearNgramLoss(torch.autograd.Function):
    """The first phase of the head, autograd between the phases, and the second."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        log_links_BLL: Tensor,
        options: LossOptions,
        size: int,
        with_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        wanted = tuple(with_grad and needed for needed in ctx.needs_input_grad[:4])
        layout = options.targets.layout
        head = options.head(hidden_NH, weight_VH, bias_V)
        log_probs_NK, normalizer_N = head.log_probs()
        own_BLK = layout.pad(log_probs_NK).double().requires_grad_(any(wanted))
        links_BLL = log_links_BLL.detach().double().requires_grad_(any(wanted))
        with torch.set_grad_enabled(any(wanted)):
            scores_B = _scores(own_BLK, links_BLL, options.targets, size)
            loss = scores_B.mean() if options.reduction == "mean" else scores_B.sum()
        if any(wanted):
            own, links = torch.autograd.grad(loss, (own_BLK, links_BLL))
            derivative_NK = layout.unpad(own.to(log_probs_NK.dtype))
            gradients = head.contract(log_probs_NK, normalizer_N, derivative_NK, (wanted[0], wanted[1], wanted[2]))
            links = links.to(log_probs_NK.dtype) if wanted[3] else None
            ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias, links)
        leaves = (hidden_NH, weight_VH, bias_V, log_links_BLL)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in leaves]
        scores_B = scores_B.detach().to(log_probs_NK.dtype)
        ctx.mark_non_differentiable(scores_B)
        return loss.detach().to(log_probs_NK.dtype), scores_B

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*scaled_gradients(ctx, grad_loss, NO_SECOND_DERIVATIVE), None, None, None)


def _scores(own_BLK: Tensor, links_BLL: Tensor, targets: Targets, size: int) -> Tensor:
    """[B], the losses of the sequences one by one: each has its own n-grams."""
    scores = []
    lengths, target_lengths, table = (
        values.tolist() for values in on_host((targets.layout.lengths, targets.target_lengths, targets.table))
    )
    for index, (slots, tokens) in enumerate(zip(lengths, target_lengths, strict=True)):
        if slots == 0 or tokens < size:
            scores.append(own_BLK[index, :0].sum() + links_BLL[index, :0].sum())
            continue
        probs_LS = own_BLK[index, :slots, :tokens].exp()
        links_LL = links_BLL[index, :slots, :slots].exp()
        scores.append(ngram_matches(probs_LS, links_LL, table[index][:tokens], size).loss)
    return torch.stack(scores)
