"""Adding rows to a few rows of a large matrix, in an order that is always the same and without long chains of sums."""

from __future__ import annotations

import torch
from torch import Tensor


def add_rows(total: Tensor, index: Tensor, rows: Tensor) -> None:
    """``total[index] += rows``, in place. Rows with equal indices are added in a fixed order on every device."""
    if total.device.type == "cpu":
        total.index_add_(0, index, rows)
    elif total.dim() == 1:
        total.index_put_((index,), rows, accumulate=True)  # it sorts; index_add_ would add in any order
    else:
        total.add_(sum_of_rows(index, rows, total.shape[0]))


def sum_of_rows(index: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """[num_rows, ...], the sum of the rows of each index.

    It is the gradient of an embedding. ``index_put_`` would add rows of equal indices one after the other, which takes
    milliseconds if thousands are equal; this sorts as well, but adds up parts of each index's rows side by side.
    """
    return torch.ops.aten.embedding_dense_backward(rows, index, num_rows, -1, False)


def spread(table_BK: Tensor, may_add_BK: Tensor, num_rows: int) -> Tensor:
    """``table`` with other ids at columns that add 0. One id for all of them would be the longest sum."""
    place_BK = torch.arange(table_BK.numel(), device=table_BK.device).view_as(table_BK)
    return torch.where(may_add_BK, table_BK, place_BK % num_rows)
