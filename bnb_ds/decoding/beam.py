"""CTC prefix beam search over the best classes of each slot, for all sources and prefixes of a batch at once.

A prefix is the beginning of an output. It has two log-probabilities: that of the alignments that end in its last token,
and that of the alignments that end in a blank. At each slot a prefix stays as it is or is extended by one class. The
probabilities of equal prefixes are added up. Then the best ``beam_size`` prefixes are kept.

Shapes: B sequences, T slots of the longest, W prefixes, K classes of a slot, S tokens of the longest prefix so far.

Source: Hannun et al., First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional Recurrent DNNs,
2014, algorithm 1; Graves et al., ICML 2006, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bnb_ds.decoding.emissions import Emissions
from bnb_ds.decoding.ngram_lm import LmScores
from bnb_ds.decoding.options import DecodeOptions

_HASH_FACTOR = 6364136223846793005  # Knuth's multiplier; products wrap around in int64
_SHORT_PENALTY = 1e6  # nats for each token that a prefix can no longer reach; prefixes that can reach it rank first


@dataclass(eq=False)
class Prefixes:
    """The beam.

    Attributes:
        ends_in_token: float64 [B, W], log-probability of the alignments that end in the last token.
        ends_in_blank: float64 [B, W], log-probability of the alignments that end in a blank.
        tokens: int64 [B, W, T], -1 behind the end.
        lengths: int64 [B, W].
        last: int64 [B, W], the last token; -1 for the empty prefix.
        hashes: int64 [B, W], hash of all tokens.
        parents: int64 [B, W], hash of all tokens but the last.
        lm: [B, W], nats of language model and word bonus.
    """

    ends_in_token: Tensor
    ends_in_blank: Tensor
    tokens: Tensor
    lengths: Tensor
    last: Tensor
    hashes: Tensor
    parents: Tensor
    lm: Tensor

    @property
    def total(self) -> Tensor:
        """float64 [B, W], log-probability of a prefix."""
        return torch.logaddexp(self.ends_in_token, self.ends_in_blank)

    def where(self, mask_B: Tensor, other: Prefixes) -> Prefixes:
        """These prefixes for sequences with ``mask_B`` true, and ``other`` for the rest."""
        chosen = {}
        for name, value in vars(self).items():
            mask = mask_B.reshape(-1, *[1] * (value.dim() - 1))
            chosen[name] = torch.where(mask, value, getattr(other, name))
        return Prefixes(**chosen)


def search(emissions: Emissions, options: DecodeOptions, beam_size: int) -> Prefixes:
    """The best prefixes of each sequence after its last slot, in any order. Unused places have -inf.

    Args:
        emissions: log-probabilities of the slots.
        options: limits on lengths, n-grams and bad words, and the language model.
        beam_size: W.
    """
    beam = _empty_prefixes(emissions, beam_size)
    scorer = None if options.lm is None else LmScores(options.lm, options.lm_weight, options.word_bonus)
    num_steps = emissions.ids.shape[1]
    shortest = int(emissions.lengths.min())
    for step in range(num_steps):
        after = _advance(beam, emissions, step, options, scorer)
        # Sequences that have no slot at this step keep their prefixes.
        beam = after if step < shortest else after.where(emissions.lengths > step, beam)
    return beam


def _empty_prefixes(emissions: Emissions, beam_size: int) -> Prefixes:
    batch_size, num_steps = emissions.blank.shape
    score = emissions.blank.new_full((batch_size, beam_size), -torch.inf)
    first = score.clone()
    first[:, 0] = 0.0
    number = emissions.ids.new_zeros(batch_size, beam_size)
    # Unused places have different hashes; otherwise they would count as equal to the empty prefix.
    hashes = number + torch.arange(beam_size, device=number.device)
    tokens = emissions.ids.new_full((batch_size, beam_size, num_steps), -1)
    return Prefixes(score, first, tokens, number, number - 1, hashes, number - 1, torch.zeros_like(score))


def _advance(
    beam: Prefixes, emissions: Emissions, step: int, options: DecodeOptions, scorer: LmScores | None
) -> Prefixes:
    """The beam after one more slot."""
    ids_BK, log_probs_BK, blank_B = emissions.ids[:, step], emissions.log_probs[:, step], emissions.blank[:, step]
    beam_size, num_classes = beam.last.shape[1], ids_BK.shape[1]
    total_BW = beam.total
    is_last_BWK = ids_BK[:, None] == beam.last[..., None]
    # Only behind a blank does a repeated token count as a new token.
    before_BWK = torch.where(is_last_BWK, beam.ends_in_blank[..., None], total_BW[..., None])
    longer_BWK = before_BWK + log_probs_BK[:, None]
    longer_BWK = longer_BWK.masked_fill(_forbidden(beam, ids_BK, options), -torch.inf)
    own_BW = torch.where(is_last_BWK, log_probs_BK[:, None], -torch.inf).amax(2)
    stay_token_BW, stay_blank_BW = beam.ends_in_token + own_BW, total_BW + blank_B[:, None]
    # An extension may equal a prefix that is already in the beam.
    is_same_BWKV = beam.hashes[:, :, None, None] == beam.parents[:, None, None, :]
    is_same_BWKV = is_same_BWKV & (ids_BK[:, None, :, None] == beam.last[:, None, None, :])
    is_same_BWKV &= (longer_BWK > -torch.inf)[..., None]
    merged_BV = torch.where(is_same_BWKV, longer_BWK[..., None], -torch.inf).flatten(1, 2).logsumexp(1)
    stay_token_BW = torch.logaddexp(stay_token_BW, merged_BV)
    longer_BWK = longer_BWK.masked_fill(is_same_BWKV.any(3), -torch.inf)
    candidates = _Candidates(
        torch.cat((stay_token_BW, longer_BWK.flatten(1)), 1),
        torch.cat((stay_blank_BW, torch.full_like(longer_BWK, -torch.inf).flatten(1)), 1),
    )
    lm_BC = torch.cat((beam.lm, beam.lm.repeat_interleave(num_classes, 1)), 1)
    length_BC = torch.cat((beam.lengths, (beam.lengths + 1).repeat_interleave(num_classes, 1)), 1)
    slots_left_B = (emissions.lengths - step - 1).clamp(min=0)
    rank_BC = candidates.total() + lm_BC - short_penalty(length_BC, emissions.lengths, slots_left_B, options)
    num_kept = min(rank_BC.shape[1], 2 * beam_size if scorer is not None else beam_size)
    rank_BC, chosen_BC = rank_BC.topk(num_kept, 1)
    following = _follow(beam, candidates, chosen_BC, ids_BK)
    if scorer is None:
        return following
    gained_BC = scorer.gains(following.tokens, following.lengths, following.total > -torch.inf)
    rank_BC = rank_BC - following.lm + gained_BC
    following.lm = gained_BC
    order_BW = rank_BC.topk(beam_size, 1).indices
    return Prefixes(**{name: _take(value, order_BW) for name, value in vars(following).items()})


@dataclass(frozen=True, eq=False)
class _Candidates:
    """The candidates of the next slot: W unchanged prefixes, then W * K extended ones; float64 [B, W + W * K]."""

    ends_in_token: Tensor
    ends_in_blank: Tensor

    def total(self) -> Tensor:
        return torch.logaddexp(self.ends_in_token, self.ends_in_blank)


def _follow(beam: Prefixes, candidates: _Candidates, chosen_BC: Tensor, ids_BK: Tensor) -> Prefixes:
    """The chosen candidates as prefixes."""
    beam_size, num_classes = beam.last.shape[1], ids_BK.shape[1]
    extension_BC = (chosen_BC - beam_size).clamp(min=0)
    is_longer_BC = chosen_BC >= beam_size
    parent_BC = torch.where(is_longer_BC, extension_BC // num_classes, chosen_BC)
    token_BC = ids_BK.gather(1, extension_BC % num_classes)
    tokens = _take(beam.tokens, parent_BC)
    lengths, hashes = beam.lengths.gather(1, parent_BC), beam.hashes.gather(1, parent_BC)
    place_BC1 = lengths.clamp(max=tokens.shape[2] - 1)[..., None]
    kept_BC1 = tokens.gather(2, place_BC1)
    tokens.scatter_(2, place_BC1, torch.where(is_longer_BC[..., None], token_BC[..., None], kept_BC1))
    last = torch.where(is_longer_BC, token_BC, beam.last.gather(1, parent_BC))
    # An unused place may hold the tokens of a used one. With -1 as its last token, no extension is merged into it.
    last = last.masked_fill(candidates.total().gather(1, chosen_BC) == -torch.inf, -1)
    return Prefixes(
        ends_in_token=candidates.ends_in_token.gather(1, chosen_BC),
        ends_in_blank=candidates.ends_in_blank.gather(1, chosen_BC),
        tokens=tokens,
        lengths=lengths + is_longer_BC,
        last=last,
        hashes=torch.where(is_longer_BC, hashes * _HASH_FACTOR + token_BC + 1, hashes),
        parents=torch.where(is_longer_BC, hashes, beam.parents.gather(1, parent_BC)),
        lm=beam.lm.gather(1, parent_BC),
    )


def _take(values: Tensor, index_BC: Tensor) -> Tensor:
    """[B, W, ...] -> [B, C, ...], a copy."""
    index = index_BC.reshape(*index_BC.shape, *[1] * (values.dim() - 2)).expand(*index_BC.shape, *values.shape[2:])
    return values.gather(1, index)


def short_penalty(lengths_BC: Tensor, slots_B: Tensor, slots_left_B: Tensor, options: DecodeOptions) -> Tensor | float:
    """Nats [B, C] taken off candidates that cannot reach ``min_length`` with the slots that are left."""
    if options.min_length == 0:
        return 0.0
    reachable_BC = lengths_BC + slots_left_B[:, None]
    return (slots_B.clamp(max=options.min_length)[:, None] - reachable_BC).clamp(min=0) * _SHORT_PENALTY


def _forbidden(beam: Prefixes, ids_BK: Tensor, options: DecodeOptions) -> Tensor:
    """bool [B, W, K], True at extensions that break a limit."""
    forbidden_BWK = beam.last.new_zeros((*beam.last.shape, ids_BK.shape[1]), dtype=torch.bool)
    if options.max_length is not None:
        forbidden_BWK |= (beam.lengths >= options.max_length)[..., None]
    if options.no_repeat_ngram_size:
        forbidden_BWK |= _repeats(beam, ids_BK, options.no_repeat_ngram_size)
    for words in options.banned_sequences:
        is_before_BW = beam.lengths >= len(words) - 1
        for back, word in enumerate(reversed(words[:-1])):
            is_before_BW &= _token_at(beam, beam.lengths - 1 - back) == word
        forbidden_BWK |= is_before_BW[..., None] & (ids_BK == words[-1])[:, None]
    return forbidden_BWK


def _token_at(beam: Prefixes, place_BW: Tensor) -> Tensor:
    return beam.tokens.gather(2, place_BW.clamp(min=0)[..., None])[..., 0]


def _repeats(beam: Prefixes, ids_BK: Tensor, size: int) -> Tensor:
    """bool [B, W, K], True at extensions that would end in an n-gram that the prefix already holds."""
    num_places = beam.tokens.shape[2]
    begins = num_places - size + 1
    if begins < 1:
        return torch.zeros((*beam.last.shape, ids_BK.shape[1]), dtype=torch.bool, device=ids_BK.device)
    # At these places the prefix holds its own last size - 1 tokens. The token behind them must not follow again.
    is_found_BWS = torch.arange(begins, device=ids_BK.device) + size <= beam.lengths[..., None]
    for back in range(size - 1):
        end_BW1 = _token_at(beam, beam.lengths - 1 - back)[..., None]
        is_found_BWS &= beam.tokens[..., size - 2 - back : size - 2 - back + begins] == end_BW1
    followers_BWS = torch.where(is_found_BWS, beam.tokens[..., size - 1 :], -1)
    return (followers_BWS[..., None, :] == ids_BK[:, None, :, None]).any(3)


def keeps_limits(tokens: Sequence[int], options: DecodeOptions, num_slots: int) -> bool:
    """Whether an output keeps the limits on length, n-grams and bad words. ``num_slots`` bounds ``min_length``."""
    if len(tokens) < min(options.min_length, num_slots):
        return False
    if options.max_length is not None and len(tokens) > options.max_length:
        return False
    size = options.no_repeat_ngram_size
    ngrams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)] if size else []
    if len(set(ngrams)) < len(ngrams):
        return False
    return not any(
        tuple(tokens[i : i + len(words)]) == words
        for words in options.banned_sequences
        for i in range(len(tokens) - len(words) + 1)
    )
