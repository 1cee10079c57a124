"""A graph of slots: paths through it are outputs, and the loss adds up all paths that write a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout, lowest_of_each
from bnb_ds.ctc.greedy import linear_argmax, linear_best, logits_in_chunks
from bnb_ds.dag.inputs import fits
from bnb_ds.dag.loss import DagOutput, linear_dag_loss
from bnb_ds.dag.ngrams import linear_dag_ngram_loss
from bnb_ds.dag.paths import dag_best_path
from bnb_ds.dag.sampling import draw
from bnb_ds.dag.strategies import decode_best, decode_candidates, emitted, sampled_path
from bnb_ds.targets.glancing import rounded_half_up
from bnb_ds.targets.interface import ReadOptions, Scores, SlotStates, Targets, loss_count, ngram_scores


@dataclass(frozen=True)
class DagTarget:
    """A `bnb_ds.targets.interface.Target`; its slots have links.

    Attributes:
        loss_reduction: ``"token"`` or ``"sample"``.
    """

    loss_reduction: str = "token"

    def fits(self, lengths: np.ndarray, repeats: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """A path has two slots or more, and no more than there are; a graph of one slot has one path."""
        return fits(lengths, slots)

    def scores(self, states: SlotStates, targets: Targets, given_T: Tensor | None = None) -> Scores:
        """The loss over all paths, whatever slots saw."""
        dag = _loss(states, targets, f"{self.loss_reduction}_sum")
        count = loss_count(targets, dag.infeasible, self.loss_reduction)
        weights_B = targets.lengths if self.loss_reduction == "token" else torch.ones_like(targets.lengths)
        return Scores(dag.loss, count, dag.infeasible.sum(), dag.loss.new_zeros(()), weights_B)

    def ngram_scores(self, states: SlotStates, targets: Targets, size: int) -> Scores:
        """By the expected precision of n-grams, times a brevity penalty."""
        arguments = {**states.with_targets(targets), "log_links": states.links}
        return ngram_scores(linear_dag_ngram_loss(**arguments, size=size, reduction="sum").loss, targets)

    def align(self, states: SlotStates, targets: Targets) -> Tensor:
        """The most probable path; slots beside it have -1."""
        path_BL, _ = dag_best_path(**_arguments(states, targets))
        return states.layout.unpad(path_BL)

    def path_tokens(self, oracle_T: Tensor, targets: Targets, layout: PackedLayout) -> Tensor:
        """Slots beside the path have none."""
        return targets.at(oracle_T, layout)

    def glanced(self, states: SlotStates, targets: Targets, oracle_T: Tensor, ratio: float, draws_T: Tensor) -> Tensor:
        """As many slots of the best path as ``ratio`` times the number of wrong ones on it, rounded half up.

        Source: Huang et al., Directed Acyclic Transformer for Non-Autoregressive Machine Translation, ICML 2022.
        """
        best_T = linear_argmax(states.hidden, states.weight, states.bias)
        is_on_path_T = oracle_T >= 0
        if states.blocks is not None:
            is_on_path_T &= states.blocks.forced < 0  # what they write is known
        is_wrong_T = is_on_path_T & (best_T != targets.at(oracle_T, states.layout))
        number_B = rounded_half_up(ratio, states.layout.pad(is_wrong_T, False).sum(1))
        return lowest_of_each(is_on_path_T, number_B, draws_T, states.layout)

    def decode(self, states: SlotStates, options: ReadOptions) -> tuple[Tensor, Tensor]:
        """By the strategy of ``options.dag``."""
        layout, lengths_B = states.layout, states.layout.lengths
        assert states.links is not None
        if options.dag.strategy == "sample":
            return _sampled(states, options)
        if options.dag.strategy != "beam":
            token_T, log_prob_T = linear_best(states.hidden, states.weight, states.bias)
            if states.blocks is not None:
                is_forced_T = states.blocks.forced >= 0
                token_T, log_prob_T = (
                    token_T.masked_fill(is_forced_T, states.blocks.token),
                    log_prob_T.masked_fill(is_forced_T, 0.0),
                )
            best = (layout.pad(token_T), layout.pad(log_prob_T))
            return decode_best(*best, states.links, lengths_B, options.dag, pad=options.pad)
        token_TC, log_prob_TC = _candidates(states, options.dag.beam.candidates)
        candidates = (layout.pad(token_TC), layout.pad(log_prob_TC))
        return decode_candidates(*candidates, states.links, lengths_B, options.dag, pad=options.pad)


def _sampled(states: SlotStates, options: ReadOptions) -> tuple[Tensor, Tensor]:
    """Tokens are drawn only for the slots on the paths."""
    layout, dag = states.layout, options.dag
    assert options.keys is not None, "sample needs keys"
    like_BT = layout.pad(states.hidden[:, 0])
    path_BT, lengths_B, uniform_BT = sampled_path(like_BT, states.links, layout.lengths, dag, options.keys)
    is_on_BT = torch.arange(path_BT.shape[1], device=path_BT.device) < lengths_B[:, None]
    on_M = is_on_BT.flatten().nonzero()[:, 0]  # the host waits here
    rows_M = (layout.cu_seqlens.long()[:-1, None] + path_BT).flatten().index_select(0, on_M)
    hidden_MH, uniform_M = states.hidden.index_select(0, rows_M), uniform_BT.flatten().index_select(0, on_M)
    drawn = [
        draw(logits_CV, uniform_M[rows], dag.temperature, dag.top_p)
        for rows, logits_CV in logits_in_chunks(hidden_MH, states.weight, states.bias)
    ]
    token_BT = torch.zeros_like(path_BT).flatten().index_copy_(0, on_M, torch.cat(drawn)).view_as(path_BT)
    return emitted(token_BT, lengths_B, dag.merge_duplicates, options.pad)


def output_log_probs(states: SlotStates, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """float64 [B], log-probability of writing exactly these ids, int64 [B, T], summed over all paths; -inf for none."""
    longest = max(int(lengths_B.max()), 1)
    dag = _loss(states, Targets(ids_BT[:, :longest], lengths_B, longest), "none", zero_infinity=False)
    return -dag.nll.double()


def _loss(states: SlotStates, targets: Targets, reduction: str, *, zero_infinity: bool = True) -> DagOutput:
    return linear_dag_loss(**_arguments(states, targets), reduction=reduction, zero_infinity=zero_infinity)


def _arguments(states: SlotStates, targets: Targets) -> dict[str, Any]:
    forced_T = None if states.blocks is None else states.blocks.forced
    return {**states.with_targets(targets), "log_links": states.links, "forced": forced_T}


def _candidates(states: SlotStates, number: int) -> tuple[Tensor, Tensor]:
    """int64 [T, C] the best tokens of each slot, best first, and float [T, C] their log-probabilities."""
    tokens, log_probs = [], []
    for _, logits_CV in logits_in_chunks(states.hidden, states.weight, states.bias):
        best, index = logits_CV.topk(min(number, logits_CV.shape[1]), 1)
        tokens.append(index)
        log_probs.append(best - logits_CV.logsumexp(1, keepdim=True))
    return torch.cat(tokens), torch.cat(log_probs)
