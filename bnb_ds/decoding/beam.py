"""CTC prefix beam search over the best classes of each slot, for all sources and prefixes of a batch at once.

A prefix is the beginning of an output. It has two log-probabilities: that of the alignments that end in its last token,
and that of the alignments that end in a blank. At each slot a prefix stays as it is or is extended by one class. The
probabilities of equal prefixes are added up. Then the best ``beam_size`` prefixes are kept.

A prefix is known by a hash of its tokens. The tokens themselves are not copied from slot to slot: each slot leaves its
choices, and the tokens are read off them, backwards, when the search is over.

Shapes: B sequences, T slots of the longest, W prefixes, K classes of a slot, C candidates of the next beam.

Source: Hannun et al., First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional Recurrent DNNs,
2014, algorithm 1; Graves et al., ICML 2006, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bnb_ds.common.packing import on_host
from bnb_ds.decoding.constraints import HASH_FACTOR, Limits
from bnb_ds.decoding.emissions import Emissions
from bnb_ds.decoding.ngram_lm import LmScores
from bnb_ds.decoding.options import DecodeOptions


@dataclass(frozen=True, eq=False)
class Hypotheses:
    """What a search has found.

    Attributes:
        tokens: int64 [B, W, T], -1 behind the end.
        lengths: int64 [B, W]; 0 at unused places.
        total: float64 [B, W], log-probability of the alignments that the search has followed; -inf at unused places.
    """

    tokens: Tensor
    lengths: Tensor
    total: Tensor


@dataclass(frozen=True, eq=False)
class Prefixes:
    """The beam of the sequences that have a slot left.

    Attributes:
        ends_in_token: float64 [B, W], log-probability of the alignments that end in the last token.
        ends_in_blank: float64 [B, W], log-probability of the alignments that end in a blank.
        total: float64 [B, W], log-probability of all alignments; -inf at unused places.
        lm: float64 [B, W], nats of language model and word bonus.
        lengths: int64 [B, W].
        last: int64 [B, W], the last token; -1 for the empty prefix and at unused places.
        hashes: int64 [B, W], hash of all tokens.
        parents: int64 [B, W], hash of all tokens but the last.
    """

    ends_in_token: Tensor
    ends_in_blank: Tensor
    total: Tensor
    lm: Tensor
    lengths: Tensor
    last: Tensor
    hashes: Tensor
    parents: Tensor

    @classmethod
    def empty(cls, like: Tensor, batch_size: int, beam_size: int) -> Prefixes:
        """The empty prefix of each sequence; ``like`` gives the device of the beam, and its float dtype."""
        nothing = like.new_full((batch_size, beam_size), -torch.inf)
        first = nothing.clone()
        first[:, 0] = 0.0
        number = torch.zeros_like(nothing, dtype=torch.int64)
        # Unused places have different hashes; otherwise they would count as equal to the empty prefix.
        hashes = number + torch.arange(beam_size, device=like.device)
        return cls(nothing, first, first, torch.zeros_like(first), number, number - 1, hashes, number - 1)

    def rows(self, part: slice) -> Prefixes:
        """Those of some sequences."""
        return Prefixes(**{name: value[part] for name, value in vars(self).items()})

    def taken(self, index_BC: Tensor) -> Prefixes:
        """Those of some places of each sequence."""
        return Prefixes(**{name: value.gather(1, index_BC) for name, value in vars(self).items()})


@dataclass(frozen=True, eq=False)
class _Slot:
    """One slot of the sequences: classes int64 [B, K], their log-probabilities [B, K], that of the blank [B, 1]."""

    ids: Tensor
    log_probs: Tensor
    blank: Tensor


class _Places:
    """Candidate c < W is prefix c as it is. Candidate W + w * K + k is prefix w with class k behind it.

    Attributes:
        prefix: int64 [C], the prefix of each candidate.
        number: int64 [C], the class k of each candidate; 0 of a prefix as it is.
        own: int64 [W], the candidates that are prefixes as they are.
        never: the log-probability of what cannot be.
    """

    def __init__(self, beam_size: int, num_classes: int, like: Tensor):
        extension = torch.arange(beam_size * num_classes, device=like.device)
        self.own = torch.arange(beam_size, device=like.device)
        self.prefix = torch.cat((self.own, extension // num_classes))
        self.number = torch.cat((torch.zeros_like(self.own), extension % num_classes))
        self.never = like.new_full((), -torch.inf)
        self.beam_size, self.num_classes = beam_size, num_classes


def search(emissions: Emissions, options: DecodeOptions, beam_size: int) -> Hypotheses:
    """The best prefixes of each sequence after its last slot, in any order.

    Args:
        emissions: log-probabilities of the slots.
        options: limits on lengths, n-grams and bad words, and the language model.
        beam_size: W.
    """
    # The longest sequences come first, so that those that still have a slot are always the first ones.
    lengths_B, order_B = emissions.lengths.sort(descending=True, stable=True)
    ids, log_probs, blank = (
        values.index_select(0, order_B) for values in (emissions.ids, emissions.log_probs, emissions.blank)
    )
    places = _Places(beam_size, ids.shape[2], blank)
    limits = Limits(options, lengths_B, ids.shape[1], beam_size)
    scorer = None if options.lm is None else LmScores(options.lm, options.lm_weight, options.word_bonus)
    beam = Prefixes.empty(blank, lengths_B.numel(), beam_size)
    finished, choices = [], []
    num_left = (np.arange(ids.shape[1]) < emissions.layout.lengths_on_host()[:, None]).sum(0).tolist()
    for step, num_rows in enumerate(num_left):
        if num_rows < beam.total.shape[0]:
            finished.append(beam.rows(slice(num_rows, None)))
            beam = beam.rows(slice(num_rows))
            limits.keep_rows(num_rows)
        slot = _Slot(ids[:num_rows, step], log_probs[:num_rows, step], blank[:num_rows, step, None])
        beam, chosen_BW = _advance(beam, slot, places, limits, scorer)
        choices.append(chosen_BW)
    parts = [beam, *reversed(finished)]
    lengths_BW, total_BW = (torch.cat([getattr(part, name) for part in parts]) for name in ("lengths", "total"))
    lengths_BW = lengths_BW.masked_fill(total_BW == -torch.inf, 0)
    tokens_BWT = _tokens(choices, num_left, ids, places)
    is_token_BWT = torch.arange(tokens_BWT.shape[2], device=blank.device) < lengths_BW[..., None]
    back_B = order_B.argsort()
    return Hypotheses(
        tokens_BWT.masked_fill(~is_token_BWT, -1).index_select(0, back_B),
        lengths_BW.index_select(0, back_B),
        total_BW.index_select(0, back_B),
    )


def _advance(
    beam: Prefixes, slot: _Slot, places: _Places, limits: Limits, scorer: LmScores | None
) -> tuple[Prefixes, Tensor]:
    """The beam after one more slot, and the candidates that it was chosen from, int64 [B, W]."""
    is_last_BWK = slot.ids[:, None] == beam.last[..., None]
    # Only behind a blank does a repeated token count as a new token.
    before_BWK = torch.where(is_last_BWK, beam.ends_in_blank[..., None], beam.total[..., None])
    longer_BWK = before_BWK + slot.log_probs[:, None]
    forbidden_BWK = limits.forbidden(beam.lengths, beam.hashes, slot.ids)
    if forbidden_BWK is not None:
        longer_BWK = longer_BWK.masked_fill(forbidden_BWK, -torch.inf)
    own_BW, number_BW = torch.where(is_last_BWK, slot.log_probs[:, None], places.never).max(2)
    merged_BW, parent_BW = _from_parents(beam, own_BW, places)
    stay_token_BW = torch.logaddexp(beam.ends_in_token + own_BW, merged_BW)
    stay_blank_BW = beam.total + slot.blank
    stay_BW = torch.logaddexp(stay_token_BW, stay_blank_BW)
    total_BC = torch.cat((stay_BW, longer_BWK.flatten(1)), 1)
    # An extension that equals a prefix of the beam is no candidate of its own.
    is_merged_BW = merged_BW > places.never
    extension_BW = parent_BW * places.num_classes + number_BW + places.beam_size
    total_BC.scatter_(
        1,
        torch.where(is_merged_BW, extension_BW, places.own),
        torch.where(is_merged_BW, places.never, stay_BW),
    )
    rank_BC = total_BC
    if scorer is not None:
        rank_BC = rank_BC + beam.lm.index_select(1, places.prefix)
    rank_BC = limits.ranked(rank_BC, beam.lengths, places.prefix)
    num_kept = min(rank_BC.shape[1], (1 if scorer is None else 2) * places.beam_size)
    rank_BC, chosen_BC = rank_BC.topk(num_kept, 1)
    following = _follow(beam, stay_token_BW, stay_blank_BW, total_BC, chosen_BC, slot.ids, places)
    if scorer is not None:
        gained_BC = scorer.gains(following.hashes, following.parents, following.last, following.total > places.never)
        order_BW = (rank_BC - following.lm + gained_BC).topk(places.beam_size, 1).indices
        following = replace(following, lm=gained_BC).taken(order_BW)
        chosen_BC = chosen_BC.gather(1, order_BW)
    limits.follow(chosen_BC, places.prefix.take(chosen_BC), following.lengths, following.hashes)
    return following, chosen_BC


def _from_parents(beam: Prefixes, own_BW: Tensor, places: _Places) -> tuple[Tensor, Tensor]:
    """Log-probability with which a prefix of the beam becomes another one, [B, W], and the place of the shorter one.

    ``own_BW``: the log-probability of each prefix's last token at this slot.
    """
    is_parent_BWV = beam.hashes[:, :, None] == beam.parents[:, None, :]
    is_repeat_BWV = beam.last[:, :, None] == beam.last[:, None, :]
    before_BWV = torch.where(is_repeat_BWV, beam.ends_in_blank[:, :, None], beam.total[:, :, None])
    before_BW, parent_BW = torch.where(is_parent_BWV, before_BWV, places.never).max(1)
    return before_BW + own_BW, parent_BW


def _follow(
    beam: Prefixes,
    stay_token_BW: Tensor,
    stay_blank_BW: Tensor,
    total_BC: Tensor,
    chosen_BC: Tensor,
    ids_BK: Tensor,
    places: _Places,
) -> Prefixes:
    """The chosen candidates as prefixes."""
    is_longer_BC = chosen_BC >= places.beam_size
    prefix_BC = places.prefix.take(chosen_BC)
    token_BC = ids_BK.gather(1, places.number.take(chosen_BC))
    total = total_BC.gather(1, chosen_BC)
    hashes = beam.hashes.gather(1, prefix_BC)
    last = torch.where(is_longer_BC, token_BC, beam.last.gather(1, prefix_BC))
    return Prefixes(
        ends_in_token=torch.where(is_longer_BC, total, stay_token_BW.gather(1, prefix_BC)),
        ends_in_blank=torch.where(is_longer_BC, places.never, stay_blank_BW.gather(1, prefix_BC)),
        total=total,
        lm=beam.lm.gather(1, prefix_BC),
        lengths=beam.lengths.gather(1, prefix_BC) + is_longer_BC,
        # An unused place may stand for a used one. With -1 as its last token, no extension is merged into it.
        last=last.masked_fill(total == places.never, -1),
        hashes=torch.where(is_longer_BC, hashes * HASH_FACTOR + (token_BC + 1), hashes),
        parents=torch.where(is_longer_BC, hashes, beam.parents.gather(1, prefix_BC)),
    )


def _tokens(choices: list[Tensor], num_left: list[int], ids_BTK: Tensor, places: _Places) -> Tensor:
    """int64 [B, W, T], the tokens of the last beam, read off the choices of all slots; anything behind their ends.

    Args:
        choices: the chosen candidates of each slot.
        num_left: sequences that have each slot; the first ones.
        ids_BTK: the classes of the slots.
        places: what a candidate stands for.
    """
    batch_size, num_steps, _ = ids_BTK.shape
    beam_size = places.beam_size
    # Only here does the host wait for the device.
    *chosen, known_BTK, prefix_C, number_C = (
        tensor.numpy() for tensor in on_host([*choices, ids_BTK, places.prefix, places.number])
    )
    flat = np.concatenate([rows.reshape(-1, beam_size) for rows in chosen])
    # A sequence without this slot keeps its prefixes.
    chosen_TBW = np.tile(np.arange(beam_size), (num_steps, batch_size, 1))
    chosen_TBW[np.arange(batch_size) < np.array(num_left)[:, None]] = flat
    place_BW = np.tile(np.arange(beam_size), (batch_size, 1))
    for chosen_BW in reversed(chosen_TBW):
        chosen_BW[:] = np.take_along_axis(chosen_BW, place_BW, 1)
        place_BW = prefix_C[chosen_BW]
    is_longer_BWT = (chosen_TBW >= beam_size).transpose(1, 2, 0)
    number_BWT = number_C[chosen_TBW].transpose(1, 2, 0)
    written_BWT = np.take_along_axis(known_BTK.transpose(0, 2, 1), number_BWT, 1)
    tokens_BWT = np.full_like(written_BWT, -1)
    tokens_BWT[np.arange(num_steps) < is_longer_BWT.sum(2)[..., None]] = written_BWT[is_longer_BWT]
    return torch.from_numpy(tokens_BWT).to(ids_BTK.device, non_blocking=True)
