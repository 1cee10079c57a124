"""The fused head of a graph of slots, in two phases, so that no tensor of N*V numbers exists.

With P_j = softmax(h_j W' + b), any loss of the log-probabilities of a sequence's own target tokens at its slots has,
with U_js its derivative by that of token s at slot j, the gradient with respect to the logits of slot j

    a_j P_j  +  sum_s U_js onehot(y_s),     a_j = - sum_s U_js

A CTC head knows its a_j before the dynamic programme; here they are what the dynamic programme finds out (for the DAG
loss, how probably a path passes slot j, times the weight of its sequence). So the first phase projects all rows and
keeps log-probabilities of own columns alone, and the second projects the rows again whose a_j matters, and contracts
them in the same chunk. That is 1 matrix product and 3 times the share of such rows: 4 where a model is fresh, hardly
more than 1 where it is sure which slots a target takes.

Shapes: B sequences, L slots of the longest, N real slots of all sequences together, M of them live, K columns (the
target tokens in order), H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout
from bnb_ds.ctc.head import FusedHead, Gradients
from bnb_ds.ctc.operands import exact_dtype
from bnb_ds.dag.alignment import live_slots
from bnb_ds.dag.inputs import Targets
from bnb_ds.dag.tiles import TiledProjection

_CHUNK_BYTES = 192 << 20


@dataclass(frozen=True, eq=False)
class _Columns:
    """The own columns of some of the rows."""

    layout: PackedLayout
    table: Tensor
    is_first: Tensor
    may_add: None = None


class LinearDagHead(FusedHead):
    """One batch at the projection to the vocabulary: `log_probs`, then `contract` with what they are to change by.

    Args:
        hidden_NH, weight_VH, bias_V: of any floating dtypes.
        targets: own columns are those of ``targets.table``.
        compute_dtype: of the operands of the matrix products, which are summed up in float32 (float64 for float64).
        chunk_tokens: rows of a chunk; None: `default_chunk_tokens` on a GPU, `bnb_ds.dag.tiles.Tiles` on a CPU.
    """

    def __init__(
        self,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets: Targets,
        *,
        compute_dtype: torch.dtype,
        chunk_tokens: int | None,
    ):
        self._given_chunk_tokens = chunk_tokens
        chunk_tokens = chunk_tokens or default_chunk_tokens(weight_VH, hidden_NH.shape[0])
        super().__init__(hidden_NH, weight_VH, bias_V, targets, compute_dtype=compute_dtype, chunk_tokens=chunk_tokens)
        self._targets = targets

    def log_probs(self) -> tuple[Tensor, Tensor]:
        """The first phase: [N, K] log-probabilities of each sequence's own columns, and logsumexp [N] of each row.

        A slot whose projection is not finite has NaN in all of them.
        """
        if self._weight_VH.device.type == "cpu":
            normalizer_N = self._tiled().normalizers()
            return self._own_logits().sub_(normalizer_N[:, None]), normalizer_N
        num_rows, sequence_ids = self._hidden_NH.shape[0], self._targets.layout.sequence_ids
        log_probs_NK, normalizer_N = self._empty(num_rows, self._targets.table.shape[1]), self._empty(num_rows)
        buffer_CV = self._chunk_of_logits()
        for begin in range(0, num_rows, self._chunk_tokens):
            rows = slice(begin, min(begin + self._chunk_tokens, num_rows))
            logits_CV = self._project(self._hidden_NH[rows], buffer_CV[: rows.stop - begin])
            columns_CK = self._targets.table.index_select(0, sequence_ids[rows])
            normalizer_N[rows] = logits_CV.logsumexp(1)
            log_probs_NK[rows] = logits_CV.gather(1, columns_CK) - normalizer_N[rows, None]
        return log_probs_NK, normalizer_N

    def contract(
        self,
        log_probs_NK: Tensor,
        normalizer_N: Tensor,
        derivative_NK: Tensor,
        wanted: tuple[bool, bool, bool],
        live_M: Tensor | None = None,
    ) -> Gradients:
        """The second phase.

        Args:
            log_probs_NK, normalizer_N: what the first phase returned; log-probabilities are overwritten.
            derivative_NK: U, 0 at columns that are no target tokens; of any sign.
            wanted: which gradients: of hidden, weight, bias.
            live_M: int64, the rows whose derivatives matter; None: they are looked for, and a GPU must wait here for
                their number.
        """
        if not any(wanted):
            return Gradients(None, None, None)
        layout = self._targets.layout
        if live_M is None and layout.num_tokens:
            size_BL = layout.pad(derivative_NK.abs().sum(1))
            live_M = layout.unpad(live_slots(size_BL, self._exact_dtype)).nonzero()[:, 0]
        if live_M is None or len(live_M) == layout.num_tokens:
            columns = _Columns(layout, self._targets.table, self._targets.is_first)
            return self._at_rows(self._hidden_NH, columns).contract(log_probs_NK, normalizer_N, derivative_NK, wanted)
        rows = self._at_rows(self._hidden_NH.index_select(0, live_M), self._columns_of(live_M))
        log_probs_MK, normalizer_M, derivative_MK = (
            values.index_select(0, live_M) for values in (log_probs_NK, normalizer_N, derivative_NK)
        )
        gradients = rows.contract(log_probs_MK, normalizer_M, derivative_MK, wanted)
        hidden_NH = None
        if wanted[0]:
            hidden_NH = self._zeros(*self._hidden_NH.shape).index_copy_(0, live_M, gradients.hidden)
        return Gradients(hidden_NH, gradients.weight, gradients.bias)

    def _at_rows(self, hidden_MH: Tensor, columns: _Columns) -> _LiveRows:
        options = {"compute_dtype": self._compute_dtype, "chunk_tokens": self._chunk_tokens}
        rows = _LiveRows(hidden_MH, self._weight_VH, self._bias_V, columns, **options)
        rows.tile_rows = self._given_chunk_tokens
        return rows

    def _tiled(self) -> TiledProjection:
        return TiledProjection(self._hidden_NH, self._weight_VH, self._bias_V, self._given_chunk_tokens)

    def _own_logits(self) -> Tensor:
        """[N, K], of each sequence's own columns."""
        layout, table_BK = self._targets.layout, self._targets.table
        weight_BKH = self._weight_VH.index_select(0, table_BK.flatten()).unflatten(0, table_BK.shape)
        logits_NK = layout.unpad(layout.pad(self._hidden_NH) @ weight_BKH.mT)
        if self._bias_V is None:
            return logits_NK
        return logits_NK.add_(self._bias_V[table_BK].index_select(0, layout.sequence_ids))

    def _columns_of(self, index_M: Tensor) -> _Columns:
        """Own columns, where some of the rows are all there are."""
        layout = self._targets.layout
        counts_B = torch.zeros_like(layout.lengths).index_add_(
            0, layout.sequence_ids.index_select(0, index_M), torch.ones_like(index_M)
        )
        layout = PackedLayout.from_lengths(counts_B, num_tokens=len(index_M), max_seqlen=layout.max_seqlen)
        return _Columns(layout, self._targets.table, self._targets.is_first)


class _LiveRows(FusedHead):
    """The second phase, for rows whose gradients matter."""

    #: of a tile, on a CPU; None: `bnb_ds.dag.tiles.Tiles` decides
    tile_rows: int | None = None

    def contract(
        self, log_probs_MK: Tensor, normalizer_M: Tensor, derivative_MK: Tensor, wanted: tuple[bool, bool, bool]
    ) -> Gradients:
        """As `LinearDagHead.contract`."""
        dense_M = -derivative_MK.sum(1)
        sequence_ids = self._alignment.layout.sequence_ids
        self._begin_gradients(wanted)
        if self._weight_VH.device.type == "cpu":
            tiled = TiledProjection(self._hidden_NH, self._weight_VH, self._bias_V, self.tile_rows)
            own_MK = self._alignment.table.index_select(0, sequence_ids)
            tiled.contract(normalizer_M, dense_M, own_MK, self.gradients)
        else:
            self._pass_over_vocabulary(dense_M, with_gradients=True)
        own_MK = log_probs_MK.exp_().mul_(dense_M[:, None])
        own_MK.mul_(self._alignment.is_first.index_select(0, sequence_ids))
        self._contract_own_columns(own_MK.add_(derivative_MK))
        return self.gradients


def default_chunk_tokens(weight_VH: Tensor, num_rows: int) -> int:
    """Rows of a chunk on a GPU: equal chunks, as few as keep the logits of one within 192 MB."""
    most = max(_CHUNK_BYTES // (exact_dtype(weight_VH.dtype).itemsize * weight_VH.shape[0]), 1)
    num_chunks = max(-(-num_rows // most), 1)
    return max(-(-num_rows // num_chunks), 1)
