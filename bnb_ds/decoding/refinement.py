"""Refinement: further passes of the decoder, in which slots see tokens that the passes before have written.

The encoder runs once. Nothing here depends on the other sources of a batch.

Shapes: B sequences, T decoder slots of all sequences together, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bnb_ds.common.packing import lowest_of_each
from bnb_ds.ctc.greedy import linear_best
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.model.lm_head_model import BnbLMHeadModel
from bnb_ds.model.network import Encoded
from bnb_ds.model.slots import DecoderSlots
from bnb_ds.targets.interface import SlotStates

#: log-probabilities that differ by less are alike when the least probable tokens are looked for, in nats
LOG_PROB_STEP = 2.0**-7


def num_masked(lengths_B: Tensor, number: int, passes: int) -> Tensor:
    """int64 [B], how many of a sequence's tokens are predicted anew in a pass: ``floor(length (T - t) / T)``.

    Args:
        lengths_B: int64, tokens of each sequence.
        number: t, the pass; the first one is 0 and predicts everything.
        passes: T, of all passes.
    """
    return lengths_B * (passes - number) // passes


def written(
    model: BnbLMHeadModel, encoded: Encoded, slots: DecoderSlots, bias_V: Tensor, options: DecodeOptions
) -> tuple[SlotStates, Tensor, Tensor]:
    """Tokens of a model with one token a slot, after all passes.

    Args:
        model: the model.
        encoded: the sources.
        slots: as they are opened, without a known token.
        bias_V: the head's bias; -inf switches a token off.
        options: say how many passes there are behind the first one, and when slots exit.

    Returns:
        The slots of the last pass; int64 [T], the token of each slot; float [T], its log-probability in the pass that
        wrote it.
    """
    if model.config.refined_tokens == "all":
        return rewritten(model, encoded, slots, bias_V, options)
    return mask_predict(model, encoded, slots, bias_V, options)


def mask_predict(
    model: BnbLMHeadModel, encoded: Encoded, slots: DecoderSlots, bias_V: Tensor, options: DecodeOptions
) -> tuple[SlotStates, Tensor, Tensor]:
    """`written` by a model that predicts the least probable tokens anew in each further pass.

    Source: Ghazvininejad et al., Mask-Predict, EMNLP 2019.
    """
    refinement = options.refinement
    states = _states(model, encoded, slots, options)
    best_T, log_probs_T = linear_best(states.hidden, states.weight, bias_V)
    for number in range(1, refinement + 1):
        number_B = num_masked(slots.layout.lengths, number, refinement + 1)
        everywhere_T = torch.ones_like(best_T, dtype=torch.bool)
        is_masked_T = lowest_of_each(everywhere_T, number_B, _rounded(log_probs_T), slots.layout)
        states = _states(model, encoded, _holding(slots, torch.where(is_masked_T, -1, best_T)), options)
        again_T, again_log_probs_T = linear_best(states.hidden, states.weight, bias_V)
        best_T = torch.where(is_masked_T, again_T, best_T)
        log_probs_T = torch.where(is_masked_T, again_log_probs_T, log_probs_T)
    return states, best_T, log_probs_T


def rewritten(
    model: BnbLMHeadModel, encoded: Encoded, slots: DecoderSlots, bias_V: Tensor, options: DecodeOptions
) -> tuple[SlotStates, Tensor, Tensor]:
    """`written` by a model that predicts all tokens anew in each further pass, until those of a source are as before.

    A source whose tokens did not change keeps them, whatever the others of its batch do; further passes leave it out.

    Source: Lee et al., Deterministic Non-Autoregressive Neural Sequence Modeling by Iterative Refinement, EMNLP 2018.
    """
    first = states = _states(model, encoded, slots, options)
    hidden_TH = states.hidden
    best_T, log_probs_T = linear_best(hidden_TH, states.weight, bias_V)
    places = torch.arange(best_T.numel(), device=best_T.device)
    for _ in range(options.refinement):
        before = best_T.index_select(0, places)
        states = _states(model, encoded, _holding(slots, before), options)
        again, log_probs = linear_best(states.hidden, states.weight, bias_V)
        best_T = best_T.index_copy(0, places, again)
        log_probs_T = log_probs_T.index_copy(0, places, log_probs)
        hidden_TH = hidden_TH.index_copy(0, places, states.hidden)
        if not options.ends_early:
            continue
        rows = slots.layout.pad(again != before, False).any(1).nonzero()[:, 0].tolist()
        if not rows:
            break
        if len(rows) < len(slots.layout.lengths):
            lengths_B = slots.layout.lengths[rows]
            _, kept = slots.layout.rows(rows)
            places, encoded = places.index_select(0, kept), encoded.at(*encoded.layout.rows(rows))
            slots = model.model.open(encoded, lengths_B)
    return replace(first, hidden=hidden_TH), best_T, log_probs_T


def rescored(
    model: BnbLMHeadModel, encoded: Encoded, slots: DecoderSlots, bias_V: Tensor, options: DecodeOptions
) -> SlotStates:
    """The slots of a CTC model after the last pass.

    In each further pass a slot sees its token of the pass before, but for blanks and the least probable tokens, fewer
    of them from pass to pass (`num_masked`). All slots are predicted anew. A model that sees all of its tokens would
    only repeat them. Arguments are those of `written`.
    """
    refinement = options.refinement
    states = _states(model, encoded, slots, options)
    for number in range(1, refinement + 1):
        best_T, log_probs_T = linear_best(states.hidden, states.weight, bias_V)
        is_token_T = best_T != model.config.blank_token_id
        number_B = num_masked(slots.layout.pad(is_token_T, False).sum(1), number, refinement + 1)
        is_masked_T = lowest_of_each(is_token_T, number_B, _rounded(log_probs_T), slots.layout)
        states = _states(model, encoded, _holding(slots, torch.where(is_token_T & ~is_masked_T, best_T, -1)), options)
    return states


def _states(model: BnbLMHeadModel, encoded: Encoded, slots: DecoderSlots, options: DecodeOptions) -> SlotStates:
    return model.states(encoded, slots, options.exit_entropy, ends_early=options.ends_early)


def _rounded(log_probs_T: Tensor) -> Tensor:
    """Slots that are equal have equal log-probabilities but for their last bits, which depend on the batch."""
    return (log_probs_T / LOG_PROB_STEP).round()


def _holding(slots: DecoderSlots, tokens_T: Tensor) -> DecoderSlots:
    """The slots with these tokens in their input; -1: what they held when they were opened."""
    assert slots.token_ids is not None, "refinement needs decoder_tokens"
    return replace(slots, token_ids=torch.where(tokens_T >= 0, tokens_T, slots.token_ids))
