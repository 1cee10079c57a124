"""Outputs with one token for each slot, chosen so that they hold no bad word.

Shapes: N slots of all sequences together, T slots of one, K classes of a slot, H hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout
from bnb_ds.ctc.greedy import logits_in_chunks
from bnb_ds.decoding.bad_words import BadWords


def without_bad_words(
    best_N: Tensor,
    log_probs_N: Tensor,
    head: tuple[Tensor, Tensor, Tensor],
    layout: PackedLayout,
    bad_words: BadWords,
    num_classes: int,
) -> tuple[Tensor, Tensor]:
    """Replace each output that holds a bad word by the most probable one that holds none.

    Args:
        best_N: int64, the best token of each slot.
        log_probs_N: float, its log-probability.
        head: hidden states [N, H], weight [V, H] and bias [V] of the projection.
        layout: layout of the slots.
        bad_words: the words.
        num_classes: best classes of a slot that are tried. A token that writes nothing is tried too, so that there is
            always such an output.
    """
    hidden_NH, weight_VH, bias_V = head
    outputs = layout.pad(best_N).tolist()
    ends = layout.lengths_on_host().tolist()
    broken = [row for row, end in enumerate(ends) if not bad_words.allow(outputs[row][:end])]
    best_N, log_probs_N = best_N.clone(), log_probs_N.clone()
    for row in broken:
        _, places = layout.rows([row])
        ids, log_probs = [], []
        for _, logits_CV in logits_in_chunks(hidden_NH.index_select(0, places), weight_VH, bias_V):
            values, classes = logits_CV.topk(min(num_classes, logits_CV.shape[1]), 1)
            silent = torch.full_like(classes[:, :1], bad_words.silent_id)
            norms = logits_CV.logsumexp(1, keepdim=True)
            ids.append(torch.cat((classes, silent), 1))
            log_probs.append(torch.cat((values, logits_CV[:, bad_words.silent_id, None]), 1) - norms)
        ids_TK, log_probs_TK = torch.cat(ids), torch.cat(log_probs)
        columns = _best_columns(ids_TK.tolist(), log_probs_TK.tolist(), bad_words)
        index = torch.tensor(columns, device=places.device)[:, None]
        best_N[places] = ids_TK.gather(1, index)[:, 0]
        log_probs_N[places] = log_probs_TK.gather(1, index)[:, 0]
    return best_N, log_probs_N


def _best_columns(ids: list[list[int]], log_probs: list[list[float]], bad_words: BadWords) -> list[int]:
    """The class of each slot on the most probable way through the states of the words (Viterbi's algorithm)."""
    nats = {0: 0.0}
    origins: list[dict[int, tuple[int, int]]] = []
    for tokens, gains in zip(ids, log_probs, strict=True):
        following: dict[int, float] = {}
        origin: dict[int, tuple[int, int]] = {}
        for state, before in nats.items():
            for column, (token, gain) in enumerate(zip(tokens, gains, strict=True)):
                after = bad_words.after(state, token)
                if after >= 0 and (after not in following or before + gain > following[after]):
                    following[after], origin[after] = before + gain, (state, column)
        nats = following
        origins.append(origin)
    state = max((end for end in nats if bad_words.may_end(end)), key=lambda end: nats[end])
    columns = []
    for origin in reversed(origins):
        state, column = origin[state]
        columns.append(column)
    return columns[::-1]
