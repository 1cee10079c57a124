"""The DAG losses as torch functions: what is finished in the forward pass, and what is left for backward.

Shapes: B sequences, L slots of the longest, N real slots of all sequences together, K columns (the target tokens in
order), H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnb_ds.ctc.autograd import scaled_gradients
from bnb_ds.dag.alignment import Posteriors, nll_and_posteriors
from bnb_ds.dag.head import LinearDagHead
from bnb_ds.dag.inputs import Targets

_NO_SECOND_DERIVATIVE = (
    "the DAG loss has no second derivative: its gradient is written by hand. Call backward without create_graph=True"
)


@dataclass(frozen=True)
class LossOptions:
    """What turns the losses of sequences into one number."""

    targets: Targets
    reduction: str
    zero_infinity: bool
    compute_dtype: torch.dtype
    chunk_tokens: int | None = None
    #: int64 [B, L], `bnb_ds.dag.inputs.with_forced`
    forced: Tensor | None = None

    def head(self, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> LinearDagHead:
        dtype, chunk_tokens = self.compute_dtype, self.chunk_tokens
        return LinearDagHead(hidden_NH, weight_VH, bias_V, self.targets, compute_dtype=dtype, chunk_tokens=chunk_tokens)

    def weights(self, impossible_B: Tensor) -> Tensor:
        """float64 [B], the derivative of the reduced loss by each sequence's."""
        lengths_B = self.targets.target_lengths
        weight_B = torch.ones_like(lengths_B, dtype=torch.float64)
        if self.reduction in ("mean", "sample_sum"):
            weight_B /= lengths_B.clamp(min=1)
        if self.reduction == "mean":
            weight_B /= lengths_B.numel()
        return weight_B.masked_fill_(impossible_B, 0.0)

    def masked(self, nll_B: Tensor) -> Tensor:
        """[B], infeasible sequences at 0 or infinity; a NaN stays a NaN."""
        return nll_B.masked_fill(nll_B == torch.inf, 0.0) if self.zero_infinity else nll_B

    def reduce(self, nll_B: Tensor) -> Tensor:
        if self.reduction == "none":
            return nll_B
        if self.reduction in ("sum", "token_sum"):
            return nll_B.sum()
        per_token_B = nll_B / self.targets.target_lengths.clamp(min=1)
        return per_token_B.mean() if self.reduction == "mean" else per_token_B.sum()


class _Passed:
    """One batch after the first phase and the dynamic programme."""

    def __init__(
        self,
        options: LossOptions,
        leaves: tuple[Tensor, Tensor, Tensor | None],
        log_links_BLL: Tensor,
        with_posteriors: bool,
    ):
        layout = options.targets.layout
        self.head = options.head(*leaves)
        self.log_probs_NK, self.normalizer_N = self.head.log_probs()
        self.nll_B, self.posteriors = nll_and_posteriors(
            layout.pad(self.log_probs_NK),
            log_links_BLL.detach().to(self.log_probs_NK.dtype),
            layout.lengths,
            options.targets.target_lengths,
            with_posteriors,
            options.forced,
        )
        self.infeasible_B = self.nll_B == torch.inf
        # A projection that is not finite must show even where the loss itself is left out.
        is_nan_B = layout.pad(self.log_probs_NK.isnan().any(1), False).any(1)
        self.nll_B = self.nll_B.masked_fill(is_nan_B, torch.nan)


def _gradients(
    options: LossOptions,
    head: LinearDagHead,
    log_probs_NK: Tensor,
    normalizer_N: Tensor,
    posteriors: Posteriors,
    weight_B: Tensor,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Of hidden, weight, bias and links; posteriors and log-probabilities are overwritten."""
    weight_B = -weight_B.to(log_probs_NK.dtype)
    derivative_NK = options.targets.layout.unpad(posteriors.slots.mul_(weight_B[:, None, None]))
    gradients = head.contract(
        log_probs_NK, normalizer_N, derivative_NK, (wanted[0], wanted[1], wanted[2]), posteriors.live
    )
    links_BLL = posteriors.links.mul_(weight_B[:, None, None]) if wanted[3] else None
    return gradients.hidden, gradients.weight, gradients.bias, links_BLL


class LinearDagLoss(torch.autograd.Function):
    """One number for the batch: all gradients are finished in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        log_links_BLL: Tensor,
        options: LossOptions,
        with_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = tuple(with_grad and needed for needed in ctx.needs_input_grad[:4])
        leaves = (hidden_NH, weight_VH, bias_V, log_links_BLL)
        passed = _Passed(options, leaves[:3], log_links_BLL, any(wanted))
        if any(wanted):
            assert passed.posteriors is not None
            weight_B = options.weights(passed.infeasible_B)
            first_phase = (passed.log_probs_NK, passed.normalizer_N)
            finished = _gradients(options, passed.head, *first_phase, passed.posteriors, weight_B, wanted)
            ctx.save_for_backward(*finished)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in leaves]
        nll_B = options.masked(passed.nll_B)
        loss = options.reduce(nll_B)
        ctx.mark_non_differentiable(nll_B, passed.infeasible_B)
        return loss, nll_B, passed.infeasible_B

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (*scaled_gradients(ctx, grad_loss, _NO_SECOND_DERIVATIVE), None, None)


class LinearDagNll(torch.autograd.Function):
    """The loss of each sequence: only backward knows their weights, and makes the second phase."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        log_links_BLL: Tensor,
        options: LossOptions,
        with_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        leaves = (hidden_NH, weight_VH, bias_V)
        passed = _Passed(options, leaves, log_links_BLL, with_grad and any(ctx.needs_input_grad[:4]))
        if passed.posteriors is not None:
            first_phase = (passed.log_probs_NK, passed.normalizer_N)
            ctx.save_for_backward(*leaves, *first_phase, *passed.posteriors, passed.infeasible_B)
        ctx.options, ctx.links_dtype = options, log_links_BLL.dtype
        ctx.mark_non_differentiable(passed.infeasible_B)
        return options.masked(passed.nll_B), passed.infeasible_B

    @staticmethod
    def backward(ctx: Any, grad_nll_B: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(_NO_SECOND_DERIVATIVE)
        options = ctx.options
        *leaves, log_probs_NK, normalizer_N, slots_BLS, links_BLL, live_M, infeasible_B = ctx.saved_tensors
        weight_B = grad_nll_B.masked_fill(infeasible_B, 0.0)
        gradients = _gradients(
            options,
            options.head(*leaves),
            log_probs_NK.clone(),
            normalizer_N,
            Posteriors(slots_BLS.clone(), links_BLL.clone(), live_M),
            weight_B,
            ctx.needs_input_grad[:4],
        )
        dtypes = [None if leaf is None else leaf.dtype for leaf in leaves]
        return (
            *(
                None if gradient is None else gradient.to(dtype)
                for gradient, dtype in zip(gradients, (*dtypes, ctx.links_dtype), strict=True)
            ),
            None,
            None,
        )
