"""The CTC losses as torch autograd functions.

Shapes: B sequences, N real positions of all sequences together, K = S + 1 columns (the blank, then the target tokens in
order), H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnb_ds.ctc.alignment import nll_and_occupancy
from bnb_ds.ctc.head import LinearCtcHead
from bnb_ds.ctc.inputs import Alignment
from bnb_ds.ctc.operands import exact_dtype
from bnb_ds.ctc.sparse import add_rows, spread

_NO_SECOND_DERIVATIVE = (
    "the CTC loss has no second derivative, because the forward pass already computes its gradient: call backward "
    "without create_graph=True"
)


@dataclass(frozen=True)
class LossOptions:
    """Settings that turn the losses of sequences into one number.

    Attributes:
        alignment: targets and lengths.
        impossible: bool [B], sequences without a path.
        reduction: one of `bnb_ds.ctc.inputs.REDUCTIONS`.
        zero_infinity: whether sequences without a path add 0 instead of infinity.
        kl_weight: weight of the KL term.
        compute_dtype: see `bnb_ds.ctc.operands.compute_dtype`.
        chunk_tokens: rows of a chunk; None: `bnb_ds.ctc.head.default_chunk_tokens`.
    """

    alignment: Alignment
    impossible: Tensor
    reduction: str
    zero_infinity: bool
    kl_weight: float
    compute_dtype: torch.dtype
    chunk_tokens: int | None = None

    def head(self, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> LinearCtcHead:
        dtype, chunk_tokens = self.compute_dtype, self.chunk_tokens
        return LinearCtcHead(
            hidden_NH, weight_VH, bias_V, self.alignment, compute_dtype=dtype, chunk_tokens=chunk_tokens
        )

    def weight_of_nll(self) -> Tensor:
        """float64 [B], derivative of the reduced loss with respect to each sequence's loss."""
        lengths_B = self.alignment.target_lengths
        weight_B = torch.ones_like(lengths_B, dtype=torch.float64)
        if self.reduction in ("mean", "sample_sum"):
            weight_B /= lengths_B.clamp(min=1)
        if self.reduction == "mean":
            weight_B /= lengths_B.numel()
        return weight_B.masked_fill_(self.impossible, 0.0)

    def weight_of_kl(self) -> Tensor | None:
        """float64 [B], derivative of the reduced loss with respect to KL(uniform || p) of each position of a sequence.

        None if ``kl_weight`` is 0. With ``"sum"`` and ``"mean"``, all positions of the batch have the same weight, and
        their weights add up to ``kl_weight``. With the other reductions, each sequence adds its mean over positions,
        with the same weight as its own loss.
        """
        if not self.kl_weight:
            return None
        layout, lengths_B = self.alignment.layout, self.alignment.target_lengths
        if self.reduction in ("sum", "mean"):
            return torch.full_like(lengths_B, self.kl_weight / max(layout.num_tokens, 1), dtype=torch.float64)
        weight_B = self.kl_weight / layout.lengths.clamp(min=1).double()
        if self.reduction == "token_sum":
            weight_B = (weight_B * lengths_B).masked_fill_(self.impossible, 0.0)
        return weight_B

    def masked(self, nll_B: Tensor) -> Tensor:
        """[B], the losses, with 0 or infinity for infeasible sequences; a NaN stays a NaN."""
        instead = 0.0 if self.zero_infinity else torch.inf
        return torch.where(self.impossible & ~nll_B.isnan(), instead, nll_B)

    def reduce(self, nll_B: Tensor) -> Tensor:
        if self.reduction == "none":
            return nll_B
        if self.reduction in ("sum", "token_sum"):
            return nll_B.sum()
        per_token_B = nll_B / self.alignment.target_lengths.clamp(min=1)
        return per_token_B.mean() if self.reduction == "mean" else per_token_B.sum()


class LinearCtcLoss(torch.autograd.Function):
    """The reduced loss of the batch. All weights are known, so the forward pass computes the gradients too."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, options: LossOptions, with_grad: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        needed = ctx.needs_input_grad if with_grad else (False, False, False)
        head = options.head(hidden_NH, weight_VH, bias_V)
        head.run(options.weight_of_nll(), options.weight_of_kl(), (needed[0], needed[1], needed[2]))
        gradients = head.gradients
        ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden_NH, weight_VH, bias_V)]
        nll_B = options.masked(head.nll)
        loss = options.reduce(nll_B) + head.weighted_kl
        ctx.mark_non_differentiable(nll_B, head.kl)
        return loss, nll_B, head.kl

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (*scaled_gradients(ctx, grad_loss, _NO_SECOND_DERIVATIVE), None, None)


class LinearCtcNll(torch.autograd.Function):
    """The loss of each sequence. Only backward knows the sequences' weights, so it runs the pass a second time."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, options: LossOptions) -> Tensor:
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V)
        ctx.options = options
        return options.masked(options.head(hidden_NH, weight_VH, bias_V).run(options.weight_of_nll()).nll)

    @staticmethod
    def backward(ctx: Any, grad_nll_B: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(_NO_SECOND_DERIVATIVE)
        leaves, options = ctx.saved_tensors, ctx.options
        weight_B = grad_nll_B.masked_fill(options.impossible, 0.0)
        gradients = options.head(*leaves).run(weight_B, None, ctx.needs_input_grad[:3]).gradients
        return *(
            None if gradient is None else gradient.to(leaf.dtype)
            for leaf, gradient in zip(leaves, (gradients.hidden, gradients.weight, gradients.bias), strict=True)
        ), None


class LogProbsCtcNll(torch.autograd.Function):
    """The loss of each sequence [B] from packed log-probabilities [N, V]; +inf if a sequence has no path."""

    @staticmethod
    def forward(ctx: Any, log_probs_NV: Tensor, alignment: Alignment) -> Tensor:
        columns_NK = alignment.table.index_select(0, alignment.layout.sequence_ids)
        own_NK = log_probs_NV.gather(1, columns_NK).to(exact_dtype(log_probs_NV.dtype))
        nll_B, occupancy_NK = nll_and_occupancy(own_NK, alignment, ctx.needs_input_grad[0])
        ctx.save_for_backward(occupancy_NK)
        ctx.alignment, ctx.shape, ctx.dtype = alignment, log_probs_NV.shape, log_probs_NV.dtype
        return nll_B

    @staticmethod
    def backward(ctx: Any, grad_nll_B: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(_NO_SECOND_DERIVATIVE)
        (occupancy_NK,) = ctx.saved_tensors
        layout, (num_rows, vocab_size) = ctx.alignment.layout, ctx.shape
        own_NK = occupancy_NK * -grad_nll_B.index_select(0, layout.sequence_ids)[:, None]
        columns_BK = spread(ctx.alignment.table, ctx.alignment.may_add, vocab_size)
        columns_NK = columns_BK.index_select(0, layout.sequence_ids)
        places_NK = columns_NK + torch.arange(num_rows, device=columns_NK.device)[:, None] * vocab_size
        gradient = own_NK.new_zeros(num_rows * vocab_size)
        add_rows(gradient, places_NK.flatten(), own_NK.flatten())
        return gradient.view(num_rows, vocab_size).to(ctx.dtype), None


def scaled_gradients(ctx: Any, grad_loss: Tensor, refusal: str) -> tuple[Tensor | None, ...]:
    """The gradients that the forward pass has finished, times the gradient of the loss.

    Args:
        ctx: holds the gradients as saved tensors, and as ``dtypes`` the dtype of each input (None: no input).
        grad_loss: [].
        refusal: what is said of second derivatives.

    Raises:
        RuntimeError: a second derivative is asked for.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(refusal)
    # Gradients are scaled before the cast, because a loss scale keeps fp16 gradients from underflowing. They are scaled
    # in place if there is no second backward pass, because the weight's gradient is as large as the weight.
    scale = torch.mul if graph_is_kept() else Tensor.mul_
    return tuple(
        None if gradient is None else scale(gradient, grad_loss).to(dtype)
        for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
    )


def graph_is_kept() -> bool:
    """Whether the running backward pass keeps the graph for another one; True if torch cannot tell."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else ask()
