"""One token for each slot: there are as many slots as target tokens, and the loss is the cross-entropy of each slot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout, lowest_of_each
from bnb_ds.ctc.greedy import linear_argmax
from bnb_ds.ctc.loss import CtcOutput, linear_ctc_loss
from bnb_ds.targets.glancing import rounded_down
from bnb_ds.targets.interface import ReadOptions, Scores, SlotStates, Targets


@dataclass(frozen=True)
class TokenTarget:
    """A `bnb_ds.targets.interface.Target`.

    Attributes:
        blank: an id that no target holds; it is only the one that the shared loss function calls its blank.
        kl_weight: weight of the smoothing term KL(uniform || p).
    """

    blank: int = 0
    kl_weight: float = 0.0

    def fits(self, lengths: np.ndarray, repeats: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Every target: slots are opened for it."""
        return np.ones(slots.size, dtype=bool)

    def scores(self, states: SlotStates, targets: Targets, given_T: Tensor | None = None) -> Scores:
        """The loss of all tokens, or of those that no slot saw.

        A sequence weighs as much as it has tokens in both cases: the mean nats of the tokens that were not seen, times
        the number of all tokens. If all were seen, it adds nothing to the sum or the count.
        """
        count, infeasible = targets.lengths.sum(), targets.lengths.new_zeros(())
        operands = (states.hidden, states.weight, states.bias, targets.tokens)
        if given_T is None:
            ctc = cross_entropy_sum(*operands, blank=self.blank, kl_weight=self.kl_weight)
            return Scores(ctc.loss, count, infeasible, ctc.kl, targets.lengths)
        assert not self.kl_weight, "glancing at tokens has no smoothing term"
        nll_T = _cross_entropies(*operands, blank=self.blank, reduction="none").loss
        hidden_BT = states.layout.pad(~given_T, False)
        left_B = hidden_BT.sum(1)
        weight_B = targets.lengths.to(nll_T.dtype) / left_B.clamp(min=1)
        weight_T = torch.where(given_T, 0.0, weight_B.index_select(0, states.layout.sequence_ids))
        count = (targets.lengths * (left_B > 0)).sum()
        return Scores((nll_T * weight_T).sum(), count, infeasible, nll_T.new_zeros(()), targets.lengths)

    def masked_scores(self, states: SlotStates, targets: Targets, masked_T: Tensor) -> Scores:
        """The loss of the tokens where ``masked_T``, bool [T], is True; a sequence weighs as much as it has of them."""
        places = masked_T.nonzero()[:, 0]
        hidden, tokens = states.hidden.index_select(0, places), targets.tokens.index_select(0, places)
        operands = (hidden, states.weight, states.bias, tokens)
        ctc = cross_entropy_sum(*operands, blank=self.blank, kl_weight=self.kl_weight)
        masked_B = states.layout.pad(masked_T, False).sum(1)
        return Scores(ctc.loss, masked_B.sum(), targets.lengths.new_zeros(()), ctc.kl, masked_B)

    def ngram_scores(self, states: SlotStates, targets: Targets, size: int) -> Scores:
        """There is none (`bnb_ds.model.target_rules.check_ngrams`)."""
        raise NotImplementedError("one token a slot has no loss of n-grams")

    def align(self, states: SlotStates, targets: Targets) -> Tensor:
        """Slot j takes token j."""
        return states.layout.position_ids

    def path_tokens(self, oracle_T: Tensor, targets: Targets, layout: PackedLayout) -> Tensor:
        """Slot j writes token j."""
        return targets.at(oracle_T, layout)

    def glanced(self, states: SlotStates, targets: Targets, oracle_T: Tensor, ratio: float, draws_T: Tensor) -> Tensor:
        """As many slots, of all of a sequence, as ``ratio`` times the number of wrong ones, rounded down.

        Source: Qian et al., Glancing Transformer for Non-Autoregressive Neural Machine Translation, ACL 2021.
        """
        is_wrong_T = linear_argmax(states.hidden, states.weight, states.bias) != targets.tokens
        number_B = rounded_down(ratio, states.layout.pad(is_wrong_T, False).sum(1))
        return lowest_of_each(torch.ones_like(is_wrong_T), number_B, draws_T, states.layout)

    def decode(self, states: SlotStates, options: ReadOptions) -> tuple[Tensor, Tensor]:
        """The best token of each slot."""
        best_T = linear_argmax(states.hidden, states.weight, states.bias)
        return states.layout.pad(best_T, options.pad), states.layout.lengths


def cross_entropy_sum(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor, tokens_N: Tensor, *, blank: int, kl_weight: float = 0.0
) -> CtcOutput:
    """The sum of the cross-entropies of one token for each row, with smoothing terms, without ever holding the logits.

    For a sequence of one position and one token, CTC is the cross-entropy of that token. So this uses the fused CTC
    head with every row as a sequence. No token may be ``blank``.
    """
    return _cross_entropies(
        hidden_NH, weight_VH, bias_V, tokens_N, blank=blank, kl_weight=kl_weight, reduction="token_sum"
    )


def _cross_entropies(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor,
    tokens_N: Tensor,
    *,
    blank: int,
    reduction: str,
    kl_weight: float = 0.0,
) -> CtcOutput:
    return linear_ctc_loss(
        hidden_NH,
        weight_VH,
        bias_V,
        tokens_N,
        None,
        torch.ones_like(tokens_N),
        blank=blank,
        reduction=reduction,
        kl_weight=kl_weight,
        cu_seqlens=torch.arange(tokens_N.numel() + 1, dtype=torch.int32, device=tokens_N.device),
        max_input_length=1,
        max_target_length=1,
    )
