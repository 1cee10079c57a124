"""Greedy CTC decoding: finds the best token of each slot without the full logits, and collapses them to an output."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bnb_ds.ctc.operands import compute_dtype, empty_rows, exact_dtype, fixed_operand, operand, product

ARGMAX_CHUNK_TOKENS = 1024
#: of a chunk, 512 MB of them; a vocabulary of 250,000 has chunks of 536 tokens
_MOST_LOGITS = 1 << 27
#: numbers of a row that `row_max` first compares without their places
_BLOCK = 128


def lowered_blank(bias_V: Tensor, blank: int, penalty: float) -> Tensor:
    """The bias [V] of a projection with the blank's logit lowered by ``penalty`` nats; also in an exported graph."""
    is_blank_V = torch.arange(bias_V.numel(), device=bias_V.device) == blank
    return torch.where(is_blank_V, bias_V - penalty, bias_V)


def linear_argmax(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    """The best token of each position, int64 [N], without holding the [N, V] logits of all positions.

    Logits are compared in float32, as in the loss. Of equal logits the lowest id wins.
    """
    best_N = torch.empty(hidden_NH.shape[0], dtype=torch.int64, device=hidden_NH.device)
    for rows, logits_CV in logits_in_chunks(hidden_NH, weight_VH, bias_V):
        best_N[rows] = row_max(logits_CV)[1]
    return best_N


def linear_best(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> tuple[Tensor, Tensor]:
    """The tokens of `linear_argmax`, and the log-probability of each: float32 (float64 for float64) [N]."""
    dtype = exact_dtype(compute_dtype(hidden_NH, weight_VH))
    best_N = torch.empty(hidden_NH.shape[0], dtype=torch.int64, device=hidden_NH.device)
    log_probs_N = torch.empty(hidden_NH.shape[0], dtype=dtype, device=hidden_NH.device)
    for rows, logits_CV in logits_in_chunks(hidden_NH, weight_VH, bias_V):
        highest_C, best_N[rows] = row_max(logits_CV)
        log_probs_N[rows] = highest_C - logits_CV.logsumexp(-1)
    return best_N, log_probs_N


def row_max(rows_NV: Tensor) -> tuple[Tensor, Tensor]:
    """``rows_NV.max(-1)``: the highest number of each row [N], and its place, int64 [N]; of equal ones the first.

    A CPU compares several numbers at once if it need not keep their places, and one after another otherwise. So the
    block of a row that holds its highest number is found first, and then the place in it.
    """
    num_columns = rows_NV.shape[1]
    if rows_NV.device.type != "cpu" or num_columns <= _BLOCK or torch.compiler.is_compiling():
        highest_N, place_N = rows_NV.max(-1)
        return highest_N, place_N
    whole = num_columns - num_columns % _BLOCK
    highest_NK = rows_NV[:, :whole].unflatten(1, (-1, _BLOCK)).amax(-1)
    if whole < num_columns:
        highest_NK = torch.cat((highest_NK, rows_NV[:, whole:].amax(-1, keepdim=True)), 1)
    highest_N, block_N = highest_NK.max(-1)
    # In a last block that is not whole, the last number is repeated, and its first place wins.
    place_NC = (block_N[:, None] * _BLOCK + torch.arange(_BLOCK)).clamp_(max=num_columns - 1)
    return highest_N, block_N * _BLOCK + rows_NV.gather(1, place_NC).argmax(-1)


def linear_entropies(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    """The entropy of each position's distribution over the vocabulary, in nats: float32 (float64 for float64) [N]."""
    entropies = [
        torch.special.entr(logits_CV.softmax(-1)).sum(-1)
        for _, logits_CV in logits_in_chunks(hidden_NH, weight_VH, bias_V)
    ]
    return torch.cat(entropies)


def logits_in_chunks(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Slices of rows and their logits [C, V], float32 or float64. Use each before asking for the next."""
    dtype = compute_dtype(hidden_NH, weight_VH)
    exact = exact_dtype(dtype)
    chunk_tokens = max(min(ARGMAX_CHUNK_TOKENS, _MOST_LOGITS // len(weight_VH)), 1)
    out_CV = None
    if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # On a CPU large memory is given back at once, and allocating it anew for every chunk takes a third of the time.
        out_CV = empty_rows(min(chunk_tokens, len(hidden_NH)), len(weight_VH), exact, hidden_NH.device)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        weight_HV = fixed_operand(weight_VH, dtype).t()
        for begin in range(0, hidden_NH.shape[0], chunk_tokens):
            rows = slice(begin, begin + chunk_tokens)
            hidden_CH = operand(hidden_NH[rows], dtype)
            logits_CV = product(hidden_CH, weight_HV, dtype, out=None if out_CV is None else out_CV[: len(hidden_CH)])
            yield rows, logits_CV if bias_V is None else logits_CV.add_(bias_V)


def collapse(path_BT: Tensor, lengths_B: Tensor, blank: int = 0) -> tuple[Tensor, Tensor]:
    """Merge adjacent repeats, then drop blanks: ``[a a _ a b] -> [a a b]``.

    Args:
        path_BT: int64 [B, T], the best token of each decoder position.
        lengths_B: int [B], positions of each row; later positions are ignored.
        blank: the CTC blank.

    Returns:
        int64 [B, T] left-aligned and padded with ``blank``, and int64 [B] lengths.

    Raises:
        ValueError: ``path_BT`` is not two-dimensional.

    Source: Graves et al., ICML 2006, section 3.1 (the many-to-one map).
    """
    if path_BT.dim() != 2:
        raise ValueError(f"the path has {path_BT.dim()} dimensions: give [B, T]")
    if path_BT.device.type == "cpu":
        collapsed, lengths = _collapse_on_host(path_BT.numpy(), lengths_B.numpy(), blank)
        return torch.from_numpy(collapsed), torch.from_numpy(lengths)
    return _collapse_on_device(path_BT, lengths_B, blank)


def _collapse_on_device(path_BT: Tensor, lengths_B: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    num_positions = path_BT.shape[1]
    kept_BT = torch.arange(num_positions, device=path_BT.device) < lengths_B[:, None]
    kept_BT &= path_BT != blank
    kept_BT[:, 1:] &= path_BT[:, 1:] != path_BT[:, :-1]
    # A boolean index would wait for the device. Instead, all dropped tokens go to a spare column behind the row.
    place_BT = torch.where(kept_BT, kept_BT.cumsum(1) - 1, num_positions)
    collapsed_BT = path_BT.new_full((path_BT.shape[0], num_positions + 1), blank).scatter_(1, place_BT, path_BT)
    return collapsed_BT[:, :num_positions], kept_BT.sum(1)


def _collapse_on_host(path_BT: np.ndarray, lengths_B: np.ndarray, blank: int) -> tuple[np.ndarray, np.ndarray]:
    """The same in NumPy, which does not wake threads for so little work."""
    position_T = np.arange(path_BT.shape[1])
    kept_BT = (position_T < lengths_B[:, None]) & (path_BT != blank)
    kept_BT[:, 1:] &= path_BT[:, 1:] != path_BT[:, :-1]
    kept_B = kept_BT.sum(1)
    collapsed_BT = np.full_like(path_BT, blank)
    collapsed_BT[position_T < kept_B[:, None]] = path_BT[kept_BT]
    return collapsed_BT, kept_B
