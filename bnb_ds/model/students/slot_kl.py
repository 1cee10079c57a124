"""KL divergence between the distributions of two models at the same slots, without the logits of all slots.

With P and Q the softmax of teacher and student and w the weight of a slot, the gradient of ``w KL(P || Q)`` with
respect to the student's logits is ``w (Q - P)``. So one pass over chunks of slots gives the loss and its gradients, as
in `bnb_ds.ctc.head`.

Shapes: N slots, C of a chunk, H and H' sizes of the heads' states of student and teacher, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bnb_ds.ctc.head import default_chunk_tokens
from bnb_ds.ctc.operands import add_product, compute_dtype, empty_rows, exact_dtype, operand, product


@dataclass(frozen=True, eq=False)
class Projected:
    """Slots in front of a projection to the vocabulary.

    Attributes:
        hidden: [N, H].
        weight: [V, H].
        bias: [V].
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor

    def operands(self, dtype: torch.dtype) -> Projected:
        """Detached, for products in ``dtype``."""
        weight, hidden = (operand(values.detach(), dtype) for values in (self.weight, self.hidden))
        return Projected(hidden, weight, self.bias.detach().to(exact_dtype(dtype)))

    def log_probs(self, rows: slice, dtype: torch.dtype, out_CV: Tensor) -> Tensor:
        """[C, V], of operands."""
        product(self.hidden[rows], self.weight.t(), dtype, out=out_CV)
        return F.log_softmax(out_CV.add_(self.bias), -1)


def slot_kl(student: Projected, teacher: Projected, weight_N: Tensor) -> Tensor:
    """The sum of ``w KL(teacher || student)`` over all slots: float32 (float64 for float64) [], with gradient.

    Args:
        student, teacher: the same slots; the teacher's tensors get no gradient.
        weight_N: float [N], the weight w of each slot.

    Raises:
        ValueError: the two have other numbers of slots or tokens.
    """
    if student.hidden.shape[0] != teacher.hidden.shape[0] or len(student.bias) != len(teacher.bias):
        raise ValueError(
            f"the student has {student.hidden.shape[0]} slots over {len(student.bias)} tokens and the teacher "
            f"{teacher.hidden.shape[0]} over {len(teacher.bias)}: give the same slots and one vocabulary"
        )
    dtype = compute_dtype(student.hidden, student.weight)
    return _SlotKl.apply(student.hidden, student.weight, student.bias, teacher, weight_N, dtype)


class _SlotKl(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor,
        teacher: Projected,
        weight_N: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        with torch.autocast(hidden_NH.device.type, enabled=False):
            loss, gradients = _loss_and_gradients(Projected(hidden_NH, weight_VH, bias_V), teacher, weight_N, dtype)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = hidden_NH.dtype, weight_VH.dtype, bias_V.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        own = [(values * grad).to(dtype) for values, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return (*own, None, None, None)


def _loss_and_gradients(
    student: Projected, teacher: Projected, weight_N: Tensor, dtype: torch.dtype
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    exact, device, num_slots = exact_dtype(dtype), student.hidden.device, student.hidden.shape[0]
    of_hidden, of_weight, of_bias = (
        torch.zeros(values.shape, dtype=exact, device=device) for values in vars(student).values()
    )
    student, teacher = student.operands(dtype), teacher.operands(dtype)
    chunk = default_chunk_tokens(student.weight, 2 * num_slots)  # two models have their logits at once
    outs_CV = [empty_rows(min(chunk, num_slots), len(student.bias), exact, device) for _ in range(2)]
    loss = torch.zeros((), dtype=exact, device=device)
    weight_N = weight_N.to(exact)
    for begin in range(0, num_slots, chunk):
        rows = slice(begin, min(begin + chunk, num_slots))
        own_CV, their_CV = (
            half.log_probs(rows, dtype, out_CV[: rows.stop - begin])
            for half, out_CV in zip((student, teacher), outs_CV, strict=True)
        )
        kl_C = F.kl_div(own_CV, their_CV, reduction="none", log_target=True).sum(-1)
        loss += kl_C @ weight_N[rows]
        slope_CV = own_CV.exp_().sub_(their_CV.exp_()).mul_(weight_N[rows, None])
        rounded_CV = operand(slope_CV, dtype)
        of_hidden[rows] = product(rounded_CV, student.weight, dtype)
        add_product(of_weight, rounded_CV.t(), student.hidden[rows], dtype)
        of_bias.add_(slope_CV.sum(0))
    return loss, (of_hidden, of_weight, of_bias)
