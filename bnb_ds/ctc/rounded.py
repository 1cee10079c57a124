"""The dense part of the gradients at the fused head in 16 bits.

A chunk of the dense part is a_t P_t. It is divided by one scale for the whole batch, rounded, and contracted with the
weight and with the hidden states. Sums stay in float32 and are multiplied by the scale once, at the end. The strongest
class of each row, other than the sequence's own classes, is left out and added in full precision: if a model is nearly
sure, this one class holds most of the dense part, and rounding it would put an error of 1e-3 into the gradients.

Shapes: N rows of the batch, C rows of a chunk, H hidden size, V vocabulary, X = H + 8 columns with a bias.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bnb_ds.ctc.operands import add_product, exact_dtype, product

# With this factor, softmax values down to 1e-12 are within the range of fp16. The factor itself is too.
_PROBABILITY_SCALE = 2.0**15
_ONES = 8  # columns that sum up the gradient of the bias: one of ones, and the rest for the alignment of rows


class RoundedSums:
    """The sums over chunks.

    Args:
        hidden_NH, weight_VH: operands of the products (`bnb_ds.ctc.operands.operand`).
        dense_N: a of the gradient.
        wanted: which gradients: of hidden, weight, bias.
        compute_dtype: what is rounded to; 16 bits.

    Attributes:
        scale: [], what the dense part is divided by before it is rounded.
        hidden: [N, H], the gradient of the hidden states; None if not wanted. The others come from `finish`.
    """

    def __init__(
        self,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        dense_N: Tensor,
        wanted: tuple[bool, ...],
        compute_dtype: torch.dtype,
    ):
        exact = exact_dtype(compute_dtype)
        self._weight_VH, self._wanted, self._dtype = weight_VH, wanted, compute_dtype
        self._hidden_NH = hidden_NH
        # At least 1e-30, so that one can divide by it in float32.
        self.scale = F.pad(dense_N, (0, 1)).abs().amax().clamp(min=1e-30) / _PROBABILITY_SCALE
        self.scaled_N = dense_N / self.scale
        self.hidden = torch.empty_like(hidden_NH, dtype=exact) if wanted[0] else None
        self._right_NX = hidden_NH if wanted[1] else hidden_NH[:, :0]
        if wanted[2]:
            # The gradient of the bias is the product with a column of ones: so no chunk is read once more for it.
            ones_N8 = F.pad(hidden_NH.new_ones(len(hidden_NH), 1), (0, _ONES - 1))
            self._right_NX = torch.cat((self._right_NX, ones_N8), 1)
        self._sum_VX = None
        if any(wanted[1:]):
            self._sum_VX = weight_VH.new_zeros(len(weight_VH), self._right_NX.shape[1], dtype=exact)
        self._rival_N = torch.empty(len(dense_N), dtype=torch.int64, device=dense_N.device)
        self._strength_N = torch.empty_like(dense_N)

    def add(self, scaled_CV: Tensor, rows: slice, rival_C: Tensor, strength_C: Tensor) -> None:
        """Contract one chunk.

        Args:
            scaled_CV: a P / scale as an operand, 0 at the rivals.
            rows: the chunk.
            rival_C: int64, the class left out.
            strength_C: its a P, exact.
        """
        self._rival_N[rows], self._strength_N[rows] = rival_C, strength_C
        if self.hidden is not None:
            grad_CH = product(scaled_CV, self._weight_VH, self._dtype, out=self.hidden[rows])
            rivals_CH = self._weight_VH.index_select(0, rival_C).to(grad_CH.dtype)
            grad_CH.mul_(self.scale).addcmul_(rivals_CH, strength_C[:, None])
        if self._sum_VX is not None:
            add_product(self._sum_VX, scaled_CV.t(), self._right_NX[rows], self._dtype)

    def finish(self) -> tuple[Tensor | None, Tensor | None]:
        """The dense gradients [V, H] of the weight and [V] of the bias, without rivals; None if not wanted."""
        if self._sum_VX is None:
            return None, None
        hidden_size = self._hidden_NH.shape[1] if self._wanted[1] else 0
        weight = self._sum_VX[:, :hidden_size] * self.scale if self._wanted[1] else None
        bias = self._sum_VX[:, hidden_size] * self.scale if self._wanted[2] else None
        self._sum_VX = None  # it is as large as the weight
        return weight, bias

    def rivals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each row: the class left out, int64 [N]; what it adds to the weight [N, H]; and to the bias [N]."""
        return self._rival_N, self._hidden_NH * self._strength_N[:, None], self._strength_N
