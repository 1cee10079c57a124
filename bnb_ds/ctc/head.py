"""The fused head: projection, softmax, CTC and the gradients of all three, one chunk of rows at a time.

With P = softmax(h W' + b) and the CTC occupancy ``occ`` (at most S + 1 non-zeros per position), the gradient of the
loss with respect to the logits of position t of sequence b is

    a_t P_t  -  g_b occ_t  -  k_b / V,     a_t = g_b + k_b

where g_b is the weight of the sequence's loss (0 if it has no path) and k_b is the weight of KL(uniform || P_t). All
a_t are known before the dynamic programme. So the dense part is contracted with W and with h while its chunk of P is in
memory. This takes three matrix products and one pass, and no tensor of size N*V is kept. The dense part leaves out the
columns of the blank and of the sequence's own tokens. In these columns P - occ is computed in full precision and
contracted in a small second step. The last part has rank one.

Shapes: B sequences, T positions of the longest, N real positions of all sequences together, C rows of a chunk,
K = S + 1 columns (the blank, then the target tokens in order), H hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from bnb_ds.common.packing import PackedLayout
from bnb_ds.ctc.alignment import nll_and_occupancy
from bnb_ds.ctc.inputs import Alignment
from bnb_ds.ctc.kernels import uses_triton
from bnb_ds.ctc.operands import empty_rows, exact_dtype, operand, operand_rows, product
from bnb_ds.ctc.rounded import RoundedSums
from bnb_ds.ctc.sparse import add_rows, spread


@dataclass(frozen=True)
class Gradients:
    """Gradients of one batch's loss: [N, H], [V, H] and [V], in float32 (float64 for float64); None if not wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class OwnColumns(Protocol):
    """Which columns of the vocabulary each sequence calls its own.

    Attributes:
        layout: where each sequence lies among the N rows.
        table: int64 [B, K], the vocabulary id of each column.
        is_first: bool [B, K], the first column of its sequence that holds this id.
        may_add: bool [B, K], columns that add to gradients; the others' coefficients are 0. None: all may.
    """

    @property
    def layout(self) -> PackedLayout: ...
    @property
    def table(self) -> Tensor: ...
    @property
    def is_first(self) -> Tensor: ...
    @property
    def may_add(self) -> Tensor | None: ...


class FusedHead:
    """Rows at a projection to the vocabulary, and the chunked passes over it that several losses share.

    Args:
        hidden_NH, weight_VH, bias_V: of any floating dtypes.
        alignment: the columns that sequences call their own.
        compute_dtype: of the operands of the matrix products, which are summed up in float32 (float64 for float64).
        chunk_tokens: rows C of a chunk; None: `default_chunk_tokens`.
    """

    def __init__(
        self,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        alignment: OwnColumns,
        *,
        compute_dtype: torch.dtype,
        chunk_tokens: int | None,
    ):
        self._alignment = alignment
        self._compute_dtype = compute_dtype
        self._exact_dtype = exact_dtype(compute_dtype)
        self._is_low_precision = compute_dtype.itemsize == 2
        self._hidden_NH = operand(hidden_NH.detach(), compute_dtype)
        self._weight_VH = operand(weight_VH.detach(), compute_dtype)
        self._bias_V = None if bias_V is None else bias_V.detach().to(self._exact_dtype)
        self._chunk_tokens = chunk_tokens or default_chunk_tokens(weight_VH, hidden_NH.shape[0])
        self._rounded: RoundedSums | None = None
        self.gradients = Gradients(None, None, None)

    def _begin_gradients(self, wanted: tuple[bool, bool, bool]) -> None:
        """Memory for those of hidden, weight and bias that are wanted; those of hidden are not filled yet."""
        self.gradients = Gradients(
            hidden=self._empty(*self._hidden_NH.shape) if wanted[0] else None,
            weight=self._zeros(*self._weight_VH.shape) if wanted[1] else None,
            bias=self._zeros(self._weight_VH.shape[0]) if wanted[2] else None,
        )

    def _pass_over_vocabulary(self, dense_N: Tensor, with_gradients: bool) -> tuple[Tensor, Tensor]:
        """Log-probabilities [N, K] of each sequence's own columns, and logsumexp [N]. Adds up the dense gradients."""
        alignment, num_rows = self._alignment, self._hidden_NH.shape[0]
        log_probs_NK = self._empty(num_rows, alignment.table.shape[1])
        normalizer_N = self._empty(num_rows)
        if with_gradients and self._is_low_precision:
            wanted = tuple(g is not None for g in (self.gradients.hidden, self.gradients.weight, self.gradients.bias))
            self.gradients = Gradients(None, None, None)  # these come at the end, and take the same memory
            self._rounded = RoundedSums(self._hidden_NH, self._weight_VH, dense_N, wanted, self._compute_dtype)
        buffer_CV = self._chunk_of_logits()
        is_fused = self._rounded is not None and uses_triton(buffer_CV.device, "softmax")
        bias_V = self._bias_V
        if is_fused and bias_V is not None:  # the kernel adds it, and reads it in rows as long as those of the logits
            bias_V = F.pad(bias_V, (0, buffer_CV.stride(0) - len(bias_V)))
        for begin in range(0, num_rows, self._chunk_tokens):
            rows = slice(begin, min(begin + self._chunk_tokens, num_rows))
            columns_CK = alignment.table.index_select(0, alignment.layout.sequence_ids[rows])
            hidden_CH, out_CV = self._hidden_NH[rows], buffer_CV[: rows.stop - begin]
            if is_fused:
                logits_CV = product(hidden_CH, self._weight_VH.t(), self._compute_dtype, out=out_CV)
            else:
                logits_CV = self._project(hidden_CH, out_CV)
            torch.gather(logits_CV, 1, columns_CK, out=log_probs_NK[rows])
            if is_fused:
                if bias_V is not None:
                    log_probs_NK[rows] += bias_V[columns_CK]
                normalizer_N[rows] = self._fused_softmax(logits_CV, bias_V, columns_CK, log_probs_NK[rows], rows)
                continue
            odds_CV, total_C = self._odds(logits_CV, normalizer_N[rows])
            if with_gradients:
                odds_CV.scatter_(1, columns_CK, 0.0)
                self._contract(odds_CV, rows, dense_N[rows], total_C)
        if self._rounded is not None:
            self.gradients = Gradients(self._rounded.hidden, *self._rounded.finish())
        log_probs_NK -= normalizer_N[:, None]
        return log_probs_NK, normalizer_N

    def _odds(self, logits_CV: Tensor, normalizer_C: Tensor) -> tuple[Tensor, Tensor]:
        """The softmax times the second tensor returned, [C], in place of the logits; fills in their logsumexp."""
        best_C = logits_CV.amax(1)
        odds_CV = logits_CV.sub_(best_C[:, None]).exp_()
        total_C = odds_CV.sum(1)
        torch.add(total_C.log(), best_C, out=normalizer_C)
        return odds_CV, total_C

    def _project(self, hidden_CH: Tensor, out_CV: Tensor) -> Tensor:
        if self._bias_V is not None and not self._is_low_precision:
            return torch.addmm(self._bias_V, hidden_CH, self._weight_VH.t(), out=out_CV)
        product(hidden_CH, self._weight_VH.t(), self._compute_dtype, out=out_CV)
        return out_CV if self._bias_V is None else out_CV.add_(self._bias_V)

    def _contract(self, odds_CV: Tensor, rows: slice, dense_C: Tensor, total_C: Tensor) -> None:
        """Add ``a_t P_t`` of a chunk to the gradients. P is ``odds / total``. This overwrites ``odds``."""
        factor_C, gradients = dense_C / total_C, self.gradients
        if self._rounded is not None:
            rival_C1 = odds_CV.argmax(1, keepdim=True)
            strength_C = odds_CV.gather(1, rival_C1)[:, 0] * factor_C
            odds_CV.scatter_(1, rival_C1, 0.0)
            odds_CV.mul_((factor_C / self._rounded.scale)[:, None])
            self._rounded.add(operand_rows(odds_CV, self._compute_dtype), rows, rival_C1[:, 0], strength_C)
            return
        if gradients.bias is not None:
            gradients.bias.addmv_(odds_CV.t(), factor_C)
        if gradients.hidden is not None:
            torch.mm(odds_CV, self._weight_VH, out=gradients.hidden[rows]).mul_(factor_C[:, None])
        if gradients.weight is not None:
            gradients.weight.addmm_(odds_CV.t(), self._hidden_NH[rows] * factor_C[:, None])

    def _fused_softmax(
        self, logits_CV: Tensor, bias_V: Tensor | None, columns_CK: Tensor, own_CK: Tensor, rows: slice
    ) -> Tensor:
        """Do the softmax and the 16-bit part of `_contract` with one kernel; return logsumexp [C]."""
        from bnb_ds.ctc.triton import softmax_of_chunk

        assert self._rounded is not None
        is_first_CK = self._alignment.is_first.index_select(0, self._alignment.layout.sequence_ids[rows])
        own_C = own_CK.masked_fill(~is_first_CK, -torch.inf).logsumexp(1)
        logits_CV.scatter_(1, columns_CK, -torch.inf)
        scaled_CV, normalizer_C, rival_C, strength_C = softmax_of_chunk(
            logits_CV, bias_V, own_C, self._rounded.scaled_N[rows], self._compute_dtype
        )
        strength_C.mul_(self._rounded.scaled_N[rows]).mul_(self._rounded.scale)
        self._rounded.add(operand_rows(scaled_CV, self._compute_dtype), rows, rival_C, strength_C)
        return normalizer_C

    def _contract_own_columns(self, own_NK: Tensor) -> None:
        """Add the sparse part to the gradients: the coefficients of each sequence's own columns, and rivals."""
        table_BK, layout, gradients = self._alignment.table, self._alignment.layout, self.gradients
        own_BTK = layout.pad(own_NK)
        if gradients.hidden is not None:
            weight_BKH = self._weight_VH.index_select(0, table_BK.flatten()).to(self._exact_dtype)
            gradients.hidden.add_(layout.unpad(own_BTK @ weight_BKH.unflatten(0, table_BK.shape)))
        if gradients.weight is None and gradients.bias is None:
            return
        may_add_BK = self._alignment.may_add
        index = (table_BK if may_add_BK is None else spread(table_BK, may_add_BK, len(self._weight_VH))).flatten()
        to_bias = own_BTK.sum(1).flatten()
        rivals = None if self._rounded is None else self._rounded.rivals()
        if rivals is not None:
            index, to_bias = torch.cat((index, rivals[0])), torch.cat((to_bias, rivals[2]))
        if gradients.weight is not None:
            rows = (own_BTK.mT @ layout.pad(self._hidden_NH.to(self._exact_dtype))).flatten(0, 1)
            add_rows(gradients.weight, index, rows if rivals is None else torch.cat((rows, rivals[1])))
        if gradients.bias is not None:
            add_rows(gradients.bias, index, to_bias)

    def _chunk_of_logits(self) -> Tensor:
        """Memory for the logits of a chunk [C, V]."""
        num_rows, vocab_size = min(self._chunk_tokens, self._hidden_NH.shape[0]), self._weight_VH.shape[0]
        return empty_rows(num_rows, vocab_size, self._exact_dtype, self._weight_VH.device)

    def _zeros(self, *shape: int) -> Tensor:
        return self._weight_VH.new_zeros(shape, dtype=self._exact_dtype)

    def _empty(self, *shape: int) -> Tensor:
        return self._weight_VH.new_empty(shape, dtype=self._exact_dtype)


class LinearCtcHead(FusedHead):
    """One batch of the CTC loss at the fused head.

    After `run`: ``nll`` [B], in nats, +inf where there is no path; ``kl`` [], mean over positions, and ``weighted_kl``
    [], the sum over positions of k times it (both 0 without weights of KL); ``gradients``.
    """

    _alignment: Alignment

    def run(
        self,
        weight_of_nll_B: Tensor,
        weight_of_kl_B: Tensor | None = None,
        wanted: tuple[bool, bool, bool] = (False, False, False),
    ) -> LinearCtcHead:
        """The one pass over the vocabulary.

        Args:
            weight_of_nll_B: g of the gradient, [B]; 0 where there is no path.
            weight_of_kl_B: k of the gradient, [B], for each position of a sequence; None: no KL.
            wanted: which gradients: of hidden, weight, bias.
        """
        layout = self._alignment.layout
        self.kl, self.weighted_kl = self._zeros(), self._zeros()
        weight_of_nll_N = self._per_position(weight_of_nll_B)
        weight_of_kl_N = None if weight_of_kl_B is None else self._per_position(weight_of_kl_B)
        dense_N = weight_of_nll_N if weight_of_kl_N is None else weight_of_nll_N + weight_of_kl_N
        self._begin_gradients(wanted)
        log_probs_NK, normalizer_N = self._pass_over_vocabulary(dense_N, any(wanted))
        self.nll, occupancy_NK = nll_and_occupancy(log_probs_NK, self._alignment, any(wanted))
        # 0, or NaN where the projection was not finite: that must show even where the loss itself is left out.
        self.nll += layout.pad(normalizer_N * 0).sum(1)
        if weight_of_kl_N is not None:
            self._uniform_kl(normalizer_N, weight_of_kl_N)
        if any(wanted):
            own_NK = log_probs_NK.exp_().mul_(dense_N[:, None])
            own_NK.mul_(self._alignment.is_first.index_select(0, layout.sequence_ids))
            self._contract_own_columns(own_NK.addcmul_(occupancy_NK, weight_of_nll_N[:, None], value=-1))
        return self

    def _uniform_kl(self, normalizer_N: Tensor, weight_N: Tensor) -> None:
        """KL(uniform || P_t) = logsumexp_t - mean logit - log V, and the ``-k / V`` part of the gradients."""
        num_rows, vocab_size = normalizer_N.shape[0], self._weight_VH.shape[0]
        if num_rows == 0:
            return
        mean_weight_H = self._weight_VH.mean(0, dtype=self._exact_dtype)
        hidden_NH = self._hidden_NH.to(self._exact_dtype)
        kl_N = normalizer_N - hidden_NH @ mean_weight_H - math.log(vocab_size)
        if self._bias_V is not None:
            kl_N -= self._bias_V.mean()
        self.kl, self.weighted_kl = kl_N.mean(), kl_N @ weight_N
        if self.gradients.hidden is not None:
            self.gradients.hidden.addr_(weight_N, mean_weight_H, alpha=-1)
        if self.gradients.weight is not None:
            self.gradients.weight.sub_(weight_N @ hidden_NH / vocab_size)
        if self.gradients.bias is not None:
            self.gradients.bias.sub_(weight_N.sum() / vocab_size)

    def _per_position(self, values_B: Tensor) -> Tensor:
        """[N], the value of each position's sequence."""
        return values_B.to(self._exact_dtype).index_select(0, self._alignment.layout.sequence_ids)


def default_chunk_tokens(weight_VH: Tensor, num_rows: int) -> int:
    """Rows of a chunk, such that all chunks are equal and the logits of one take at most 48 MB, or 192 MB on a GPU.

    Smaller chunks slow the products down, and larger ones gain little. Every chunk reads the whole weight, and 48 MB
    are only 50 rows of a vocabulary of 250,000. So the logits may take an eighth as much as the weight's gradient.
    """
    chunk_bytes = (48 if weight_VH.device.type == "cpu" else 192) << 20
    num_tokens, hidden_size = weight_VH.shape
    most = max(chunk_bytes // (exact_dtype(weight_VH.dtype).itemsize * num_tokens), hidden_size // 8, 1)
    num_chunks = max(-(-num_rows // most), 1)
    return max(-(-num_rows // num_chunks), 1)
