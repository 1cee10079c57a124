"""CTC: repeats of a token are merged and blanks are dropped, and the loss adds up all ways to write a target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout
from bnb_ds.ctc.greedy import collapse, linear_argmax
from bnb_ds.ctc.loss import linear_ctc_loss
from bnb_ds.ctc.ngram_matches import linear_ctc_ngram_loss
from bnb_ds.ctc.viterbi import linear_ctc_best_path
from bnb_ds.targets.glancing import glance_by_chance
from bnb_ds.targets.interface import ReadOptions, Scores, SlotStates, Targets, loss_count, ngram_scores


@dataclass(frozen=True)
class CtcTarget:
    """A `bnb_ds.targets.interface.Target`.

    Attributes:
        blank: id of the CTC blank.
        loss_reduction: ``"token"`` or ``"sample"``.
        kl_weight: weight of the smoothing term KL(uniform || p).
    """

    blank: int = 0
    loss_reduction: str = "token"
    kl_weight: float = 0.0

    def fits(self, lengths: np.ndarray, repeats: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """A slot for each token, and one more for the blank between equal neighbours."""
        return slots >= lengths + repeats

    def scores(self, states: SlotStates, targets: Targets, given_T: Tensor | None = None) -> Scores:
        """The loss over all slots, those that saw their token included."""
        ctc = linear_ctc_loss(
            **states.with_targets(targets),
            distinct_lengths=states.distinct,
            blank=self.blank,
            reduction=f"{self.loss_reduction}_sum",
            kl_weight=self.kl_weight,
        )
        count = loss_count(targets, ctc.infeasible, self.loss_reduction)
        weights_B = targets.lengths if self.loss_reduction == "token" else torch.ones_like(targets.lengths)
        return Scores(ctc.loss, count, ctc.infeasible.sum(), ctc.kl, weights_B)

    def ngram_scores(self, states: SlotStates, targets: Targets, size: int) -> Scores:
        """By the expected F1 of n-grams; ``size`` is 1 or 2."""
        arguments = states.with_targets(targets)
        return ngram_scores(
            linear_ctc_ngram_loss(**arguments, blank=self.blank, size=size, reduction="sum").loss, targets
        )

    def align(self, states: SlotStates, targets: Targets) -> Tensor:
        """The most probable path; repeats of a token have the same index, and blanks -1."""
        arguments = states.with_targets(targets)
        return linear_ctc_best_path(**arguments, distinct_lengths=states.distinct, blank=self.blank)[0]

    def path_tokens(self, oracle_T: Tensor, targets: Targets, layout: PackedLayout) -> Tensor:
        """All slots are on the path; those without a token write the blank."""
        return torch.where(oracle_T >= 0, targets.at(oracle_T, layout), self.blank)

    def glanced(self, states: SlotStates, targets: Targets, oracle_T: Tensor, ratio: float, draws_T: Tensor) -> Tensor:
        """Each slot by chance, with probability ``ratio`` times the share of slots that differ from the best path.

        A blank slot of that path has no token to show.

        Source: Gu and Kong, Fully Non-autoregressive Neural Machine Translation, Findings of ACL 2021.
        """
        best_T = linear_argmax(states.hidden, states.weight, states.bias)
        is_wrong_T = best_T != self.path_tokens(oracle_T, targets, states.layout)
        return glance_by_chance(is_wrong_T, ratio, draws_T, states.layout) & (oracle_T >= 0)

    def decode(self, states: SlotStates, options: ReadOptions) -> tuple[Tensor, Tensor]:
        """The best token of each slot, collapsed."""
        best_T = linear_argmax(states.hidden, states.weight, states.bias)
        ids_BT, lengths_B = collapse(states.layout.pad(best_T, self.blank), states.layout.lengths, self.blank)
        beyond_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device) >= lengths_B[:, None]
        return ids_BT.masked_fill(beyond_BT, options.pad), lengths_B
