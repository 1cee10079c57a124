"""The CTC dynamic programme by torch's own ``ctc_loss``, for GPUs on which the Triton kernels do not work.

It launches a handful of kernels however many positions there are. It is given the blank and the target's own tokens
instead of the vocabulary, so that no tensor is large. Its price is that it copies lengths to the device by itself, so
the host waits for the GPU a few times in each call. In a run of three or more equal tokens it adds up in any order.

Shapes: B sequences, T positions and S target tokens of the longest, K = S + 1 columns (the blank, then the target
tokens in order).
"""

from __future__ import annotations

import torch
from torch import Tensor

_IMPOSSIBLE = -1e30  # in place of -inf, from which torch's gradient would make NaN


def forward_backward(
    emissions_TBK: Tensor, skips_BS: Tensor, target_lengths_B: Tensor, with_occupancy: bool = True
) -> tuple[Tensor, Tensor | None]:
    """As `bnb_ds.ctc.recursion.forward_backward`; but a run of equal tokens has its occupancy in its first column."""
    num_steps, batch_size, num_columns = emissions_TBK.shape
    if num_columns == 1:
        return emissions_TBK[..., 0].sum(0), torch.ones_like(emissions_TBK) if with_occupancy else None
    column_S = torch.arange(1, num_columns, device=emissions_TBK.device)
    is_behind_BS = column_S > target_lengths_B[:, None]
    # Equal neighbours share a column: this is how torch knows that there must be a blank between them.
    columns_BS = torch.where(skips_BS | is_behind_BS, column_S, 0).cummax(1).values
    # Lengths would have to be known to the host. So all targets have S tokens: behind the positions there are S more,
    # of which the s-th must write the s-th token if it is behind the target's end, and else the blank.
    is_own_S1K = torch.eye(num_columns, dtype=torch.bool, device=emissions_TBK.device)[1:, None]
    is_blank_K = torch.arange(num_columns, device=emissions_TBK.device) == 0
    is_sure_SBK = torch.where(is_behind_BS.t()[..., None], is_own_S1K, is_blank_K)
    more_SBK = torch.where(is_sure_SBK, 0.0, _IMPOSSIBLE).to(emissions_TBK.dtype)
    log_probs = torch.cat((emissions_TBK.clamp(min=_IMPOSSIBLE), more_SBK))
    lengths = [len(log_probs)] * batch_size, [num_columns - 1] * batch_size
    nll_B, alpha = torch.ops.aten._ctc_loss(log_probs, columns_BS, *lengths, 0, False)
    sum_B = torch.where(nll_B > -_IMPOSSIBLE / 2, -torch.inf, -nll_B)
    if not with_occupancy:
        return sum_B, None
    gradient = torch.ops.aten._ctc_loss_backward(
        torch.ones_like(nll_B), log_probs, columns_BS, *lengths, nll_B, alpha, 0, False
    )
    # torch's gradient is exp(log_probs) - occupancy.
    occupancy_TBK = (log_probs[:num_steps].exp() - gradient[:num_steps]).clamp_(min=0.0)
    return sum_B, occupancy_TBK / occupancy_TBK.sum(2, keepdim=True)
