"""The passes over a vocabulary on a CPU, in tiles of many rows and some columns.

A product of a hundred rows with a whole vocabulary spends half of its time on reading the weight anew. Tiles of the
same size in bytes with more rows and fewer columns take a third less, and the softmax of their short rows stays in the
innermost cache. The price is that no tile sees a whole row: logsumexp is added up from tile to tile.

Shapes: N rows, R rows and C columns of a tile, K own columns, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bnb_ds.ctc.head import Gradients

_TILE_BYTES = 10 << 20
_MOST_ROWS = 2048


@dataclass(frozen=True)
class Tiles:
    """Equal numbers of rows and of columns, all rows of the first ones before the others.

    Attributes:
        num_rows, vocab_size: what the tiles cover.
        rows, columns: of one tile, at most.
    """

    num_rows: int
    vocab_size: int
    rows: int
    columns: int

    @classmethod
    def of(cls, num_rows: int, weight_VH: Tensor, chunk_rows: int | None = None) -> Tiles:
        """Tiles of at most 10 MB, or of one column; as few rows as ``chunk_rows``, if it is given."""
        vocab_size, itemsize = weight_VH.shape[0], weight_VH.element_size()
        rows = _equal(num_rows, chunk_rows or _MOST_ROWS)
        return cls(num_rows, vocab_size, rows, _equal(vocab_size, max(_TILE_BYTES // (itemsize * rows), 1)))

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        for row in range(0, self.num_rows, self.rows):
            for column in range(0, self.vocab_size, self.columns):
                last_row, last_column = row + self.rows, column + self.columns
                yield slice(row, min(last_row, self.num_rows)), slice(column, min(last_column, self.vocab_size))


def _equal(total: int, most: int) -> int:
    num_parts = max(-(-total // most), 1)
    return max(-(-total // num_parts), 1)


class TiledProjection:
    """``h W' + b``, one tile at a time.

    Args:
        hidden_NH, weight_VH, bias_V: of one dtype, on a CPU.
        chunk_rows: rows of a tile; None: `Tiles.of`.
    """

    def __init__(self, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, chunk_rows: int | None):
        self._hidden_NH, self._weight_VH, self._bias_V = hidden_NH, weight_VH, bias_V
        self._tiles = Tiles.of(hidden_NH.shape[0], weight_VH, chunk_rows)

    def normalizers(self) -> Tensor:
        """[N], logsumexp of each row; NaN where a row is not finite."""
        # In float64, or rounding would grow with the number of tiles.
        total_N = self._hidden_NH.new_full((self._hidden_NH.shape[0],), -torch.inf, dtype=torch.float64)
        for rows, _, logits_RC in self._logits():
            highest_R = logits_RC.amax(1).double()
            # One kernel that keeps a row in the cache; what it leaves of the highest logit is minus logsumexp.
            left_R = torch.log_softmax(logits_RC, 1, out=logits_RC).amax(1)
            sum_R = torch.where(highest_R == -torch.inf, highest_R, highest_R - left_R)
            total_N[rows] = torch.logaddexp(total_N[rows], sum_R)
        return total_N.to(self._hidden_NH.dtype)

    def contract(self, normalizer_N: Tensor, dense_N: Tensor, own_NK: Tensor, gradients: Gradients) -> None:
        """Add ``dense_j P_j`` to gradients of hidden, weight and bias, own columns left out.

        Args:
            normalizer_N: of `normalizers`.
            dense_N: of any sign.
            own_NK: int64, the own columns of each row; an id may stand there several times.
            gradients: what is added to; all of hidden's are written.
        """
        # dense P is a softmax with another normalizer: no row is multiplied.
        normalizer_N = normalizer_N - dense_N.abs().log()
        is_negative_N = dense_N < 0
        has_negative, one_N = bool(is_negative_N.any()), torch.ones_like(dense_N)
        if gradients.hidden is not None:
            gradients.hidden.zero_()
        for rows, columns, logits_RC in self._logits():
            change_RC = logits_RC.sub_(normalizer_N[rows, None]).exp_()
            if has_negative:
                change_RC[is_negative_N[rows]] *= -1
            place_RK = own_NK[rows] - columns.start
            row, column = ((place_RK >= 0) & (place_RK < change_RC.shape[1])).nonzero(as_tuple=True)
            change_RC[row, place_RK[row, column]] = 0.0
            if gradients.hidden is not None:
                gradients.hidden[rows].addmm_(change_RC, self._weight_VH[columns])
            if gradients.weight is not None:
                gradients.weight[columns].addmm_(change_RC.t(), self._hidden_NH[rows])
            if gradients.bias is not None:
                gradients.bias[columns].addmv_(change_RC.t(), one_N[rows])

    def _logits(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, columns and logits of each tile, all in the same memory."""
        buffer = self._hidden_NH.new_empty(self._tiles.rows * self._tiles.columns)
        for rows, columns in self._tiles:
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            out_RC = buffer[: shape[0] * shape[1]].view(shape)
            weight_HC = self._weight_VH[columns].t()
            if self._bias_V is None:
                torch.mm(self._hidden_NH[rows], weight_HC, out=out_RC)
            else:
                torch.addmm(self._bias_V[columns], self._hidden_NH[rows], weight_HC, out=out_RC)
            yield rows, columns, out_RC
