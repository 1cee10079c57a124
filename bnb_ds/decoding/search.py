"""Chooses CTC outputs with the beam search, to find better outputs than greedy decoding or to keep limits.

Shapes: B sequences, T decoder slots of the longest, N slots of all sequences together, H hidden size, V vocabulary, W
hypotheses of a source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout, on_host
from bnb_ds.ctc.greedy import collapse, linear_best
from bnb_ds.decoding.bad_words import BadWords
from bnb_ds.decoding.beam import Hypotheses, search
from bnb_ds.decoding.constraints import keeps_limits, short_penalty
from bnb_ds.decoding.emissions import ctc_log_probs, linear_emissions
from bnb_ds.decoding.ngram_lm import LmScores
from bnb_ds.decoding.options import CONSTRAINT_BEAM, DecodeOptions
from bnb_ds.recurrences.host import to_device


@dataclass(frozen=True, eq=False)
class Slots:
    """Decoder slots of a batch, ready for the projection.

    Attributes:
        hidden: [N, H], hidden states of the LM head.
        weight: [V, H], the output matrix.
        bias: [V]; -inf switches a class off.
        layout: layout of the slots.
        blank: the CTC blank.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    layout: PackedLayout
    blank: int

    def select(self, rows: list[int]) -> Slots:
        """The slots of these sequences."""
        layout, places = self.layout.rows(rows)
        return Slots(self.hidden.index_select(0, places), self.weight, self.bias, layout, self.blank)


def refine(
    slots: Slots, options: DecodeOptions, ids_BT: Tensor | None = None, lengths_B: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs int64 [B, T] and lengths int64 [B] of the beam search.

    If the greedy outputs are given, the search replaces only those that break a limit.
    """
    if ids_BT is None or lengths_B is None:
        return _best_of_beam(slots, options, options.beam_size)
    if not options.has_limits:
        return ids_BT, lengths_B
    outputs, ends = (tensor.tolist() for tensor in on_host((ids_BT, lengths_B)))
    num_slots = slots.layout.lengths_on_host().tolist()
    broken = [row for row, end in enumerate(ends) if not keeps_limits(outputs[row][:end], options, num_slots[row])]
    if not broken:
        return ids_BT, lengths_B
    found_RT, found_R = _best_of_beam(slots.select(broken), options, CONSTRAINT_BEAM)
    ids_BT, lengths_B = ids_BT.clone(), lengths_B.clone()
    index = torch.tensor(broken).to(ids_BT.device, non_blocking=True)
    ids_BT[index, : found_RT.shape[1]] = found_RT
    return ids_BT, lengths_B.index_copy(0, index, found_R)


def ctc_score(slots: Slots, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Exact log-probability of one output of each source, float64 [B], in nats."""
    best_N, log_probs_N = linear_best(slots.hidden, slots.weight, slots.bias)
    hidden, weight, bias = slots.hidden, slots.weight, slots.bias
    highest_N = (hidden.to(log_probs_N.dtype) * weight[best_N].to(log_probs_N.dtype)).sum(1) + bias[best_N]
    norms_N = (highest_N - log_probs_N).double()
    scores_BW = ctc_log_probs(
        ids_BT[:, None], lengths_B[:, None], hidden, weight, bias, norms_N, slots.layout, blank=slots.blank
    )
    return scores_BW[:, 0]


def _best_of_beam(slots: Slots, options: DecodeOptions, beam_size: int) -> tuple[Tensor, Tensor]:
    """The hypothesis with the best exact score, language model included.

    The search drops alignments, and even outputs, that are improbable half-way. So the greedy output is a hypothesis
    too, if it keeps the limits, and the score of a hypothesis is the sum over all its alignments.
    """
    emissions = linear_emissions(
        slots.hidden,
        slots.weight,
        slots.bias,
        slots.layout,
        blank=slots.blank,
        num_classes=options.beam_classes,
    )
    log_norms_N = emissions.log_norms
    emissions = emissions.on_host()  # only here does the host wait for the device
    beam = search(emissions, options, beam_size)
    if options.bad_words:
        beam = _without_last_words(beam, options.bad_words)
    greedy_BT, greedy_B = collapse(emissions.best, emissions.lengths, slots.blank)
    outputs_BWT = torch.cat((beam.tokens, greedy_BT[:, None]), 1)
    lengths_BW = torch.cat((beam.lengths, greedy_B[:, None]), 1)
    allowed_BW = torch.cat((beam.total > -torch.inf, _allowed(greedy_BT, greedy_B, options, slots.layout)), 1)
    is_token_BWT = torch.arange(outputs_BWT.shape[2], device=outputs_BWT.device) < lengths_BW[..., None]
    outputs_BWT = outputs_BWT.masked_fill(~is_token_BWT, slots.blank)
    scores_BW = ctc_log_probs(
        outputs_BWT,
        lengths_BW,
        slots.hidden,
        slots.weight,
        slots.bias,
        log_norms_N,
        slots.layout,
        blank=slots.blank,
    )
    device = scores_BW.device
    if options.lm is not None:
        scorer = LmScores(options.lm, options.lm_weight, options.word_bonus)
        scores_BW = scores_BW + to_device(scorer.of_outputs(outputs_BWT, lengths_BW, allowed_BW), device)
    if options.min_length:
        none_left_B = torch.zeros_like(emissions.lengths)
        scores_BW = scores_BW - to_device(short_penalty(lengths_BW, emissions.lengths, none_left_B, options), device)
    outputs_BWT, lengths_BW, allowed_BW = (to_device(each, device) for each in (outputs_BWT, lengths_BW, allowed_BW))
    chosen_B = scores_BW.masked_fill(~allowed_BW, -torch.inf).argmax(1)
    everyone = torch.arange(chosen_B.numel(), device=device)
    return outputs_BWT[everyone, chosen_B], lengths_BW[everyone, chosen_B]


def _without_last_words(beam: Hypotheses, bad_words: BadWords) -> Hypotheses:
    """The hypotheses without the words at their ends that are bad. While more could follow, these were none yet."""
    tokens, lengths = on_host((beam.tokens, beam.lengths))
    rows = zip(tokens.flatten(0, 1).tolist(), lengths.flatten().tolist(), strict=True)
    longest = [bad_words.longest(tokens[:end]) for tokens, end in rows]
    return replace(beam, lengths=beam.lengths.new_tensor(longest).reshape(beam.lengths.shape))


def _allowed(ids_BT: Tensor, lengths_B: Tensor, options: DecodeOptions, layout: PackedLayout) -> Tensor:
    """bool [B, 1], True for greedy outputs that keep the limits."""
    if not options.has_limits:
        return torch.ones_like(lengths_B, dtype=torch.bool)[:, None]
    ids, ends = (tensor.tolist() for tensor in on_host((ids_BT, lengths_B)))
    rows = zip(ids, ends, layout.lengths_on_host().tolist(), strict=True)
    kept = [keeps_limits(ids[:end], options, slots) for ids, end, slots in rows]
    return torch.tensor(kept).to(ids_BT.device, non_blocking=True)[:, None]
