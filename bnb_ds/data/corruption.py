"""The pre-training noise of BnB (section 2.3 of the paper), on a whole packed batch in a few vectorised passes.

Every sample has one objective, drawn by weight. With four of them the target is the text, and the source is the text
itself (``ae``), masked (``mlm``), permuted (``plm``) or both (``mlm+plm``). With ``clm`` the source is a prefix of the
text and the target is the rest; with ``infill`` (`bnb_ds.data.infilling`) the target is a few segments of the text, and
the source is the text without them. The noise of a sample is a pure function of its key, which the caller derives from
(seed, epoch, sample).

Shapes: B sequences, N tokens of all sequences together; C tokens chosen for masking, P tokens that change places.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from bnb_ds.common.randomness import DRAWS, draws_at, packed_draws, stream_keys
from bnb_ds.data.infilling import segments
from bnb_ds.data.subwords.rules import WordStarts

#: the objectives, described at the head of this file
OBJECTIVES = ("ae", "mlm", "plm", "mlm+plm", "clm", "infill")

#: those of them that write [MASK]
NEEDS_MASK = frozenset(("mlm", "infill"))
#: the id of a token that a tokenizer lacks
NO_TOKEN = -1

# Devlin et al., NAACL 2019, section 3.1: 80% of the chosen tokens become [MASK], 10% a random token, 10% stay.
_MASK_SHARE = 0.8
_RANDOM_SHARE = 0.1

# The prefix of a continuation has 7 to 8 tenths of the tokens.
_PREFIX_TENTHS = (7, 8)

# Each decision has its own independent stream of draws.
_STREAM_PERMUTED, _STREAM_CHOSEN, _STREAM_FATE, _STREAM_TOKEN, _STREAM_OBJECTIVE, _STREAM_PREFIX = range(6)

# Tokens that change places are sorted by the low 22 bits of their draws. Two tokens of a sequence have equal bits, and
# so keep their order, once in four million pairs.
_ORDER_BITS = 22


@dataclass(frozen=True, eq=False)
class CorruptedBatch:
    """Packed sources and targets.

    Attributes:
        source: [N'] ids, of the input's dtype.
        source_cu_seqlens: int64 [B + 1], where each source begins.
        target: [M] ids; the input array itself if there are no continuations or infillings.
        target_cu_seqlens: int64 [B + 1], where each target begins.
        chosen: int64 [C], places in ``source`` that were chosen for masking, including those that kept their token.
        chosen_labels: [C] ids, the original tokens at these places.
        num_ordinary: number of tokens of ``source`` that could be chosen, which are all but the special ones.
    """

    source: np.ndarray
    source_cu_seqlens: np.ndarray
    target: np.ndarray
    target_cu_seqlens: np.ndarray
    chosen: np.ndarray
    chosen_labels: np.ndarray
    num_ordinary: int


@dataclass(frozen=True, eq=False)
class Corruption:
    """The kinds of noise and their strength. Probabilities are per ordinary (not special) token.

    Attributes:
        mask_probability: probability that a token is chosen for masking, for ``mlm`` and ``mlm+plm``; the share of
            tokens in segments, for ``infill``.
        permute_probability: probability that a token changes places, for ``plm`` and ``mlm+plm``.
        mask_id: id of [MASK]; `NO_TOKEN` if no objective masks or fills in.
        vocab_size: random replacements are drawn uniformly from the ids below it.
        mixture: objective -> weight; not all weights are 0.
        special_ids: ids that are never masked, replaced or moved. Nor are the first and last token of a sequence,
            whatever their ids.
        word_starts: where words begin; None: tokens are chosen one by one. With it, all tokens of a word in the
            original text are chosen together. Whether a chosen token is masked, replaced or kept is still drawn for
            each token.
    """

    mask_probability: float
    permute_probability: float
    mask_id: int
    vocab_size: int
    mixture: Mapping[str, float] = field(default_factory=lambda: {"mlm+plm": 1.0})
    special_ids: tuple[int, ...] = ()
    word_starts: WordStarts | None = None

    def __call__(self, tokens: np.ndarray, cu_seqlens: np.ndarray, sample_keys: np.ndarray) -> CorruptedBatch:
        """Corrupt a packed batch: permute first, then mask, then cut continuations and segments.

        Args:
            tokens: integers [N], packed sequences, each ``[CLS] tokens [SEP]``; not changed.
            cu_seqlens: int [B + 1], where each sequence begins.
            sample_keys: uint64 [B], the random key of each sample.
        """
        lengths = np.diff(cu_seqlens)
        objective_B = self._objectives(sample_keys)
        ordinary = self._ordinary(tokens, cu_seqlens)
        source = tokens
        permute_B = self._thresholds["plm"][objective_B]
        if permute_B.any():
            draws = packed_draws(stream_keys(sample_keys, _STREAM_PERMUTED), cu_seqlens)
            is_moved = _below(draws, permute_B, lengths)
            is_moved &= ordinary
            source = _shuffled(source, np.flatnonzero(is_moved), draws, cu_seqlens)
        chosen = np.zeros(0, dtype=np.int64)
        mask_B = self._thresholds["mlm"][objective_B]
        if mask_B.any():
            chosen, fates, span = self._choose(tokens, ordinary, cu_seqlens, sample_keys, mask_B)
            source = source.copy() if source is tokens else source
            self._mask(source, chosen, fates, span, cu_seqlens, sample_keys)
        is_continued, is_filled = (objective_B == OBJECTIVES.index(name) for name in ("clm", "infill"))
        if is_continued.any() or is_filled.any():
            parts = _Parts(tokens.size, cu_seqlens)
            parts.continue_prefixes(is_continued, sample_keys)
            parts.fill_in(is_filled, self.mask_probability, sample_keys)
            return parts.cut(source, tokens, ordinary, chosen, self.mask_id)
        count = int(np.count_nonzero(ordinary))
        return CorruptedBatch(source, cu_seqlens, tokens, cu_seqlens, chosen, tokens.take(chosen), count)

    @cached_property
    def _thresholds(self) -> dict[str, np.ndarray]:
        """For each noise a threshold for each of `OBJECTIVES`, uint32. A draw below it means that the token gets the
        noise; the threshold is 0 for objectives without it.
        """
        probabilities = {"mlm": self.mask_probability, "plm": self.permute_probability}
        return {
            noise: np.array([round(p * DRAWS) * (noise in name.split("+")) for name in OBJECTIVES], dtype=np.uint32)
            for noise, p in probabilities.items()
        }

    def _objectives(self, sample_keys: np.ndarray) -> np.ndarray:
        """int64 [B], the index of each sample's objective in `OBJECTIVES`."""
        names = [name for name in OBJECTIVES if self.mixture.get(name, 0) > 0]
        if len(names) == 1:
            return np.full(sample_keys.size, OBJECTIVES.index(names[0]))
        ids = np.array([OBJECTIVES.index(name) for name in names])
        bounds = np.cumsum([self.mixture[name] for name in names])
        draws = draws_at(stream_keys(sample_keys, _STREAM_OBJECTIVE), np.zeros(sample_keys.size, dtype=np.uint32))
        return ids[np.searchsorted(bounds / bounds[-1] * DRAWS, draws, side="right")]

    def _ordinary(self, tokens: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
        """bool [N], the tokens that may be changed."""
        ordinary = np.ones(tokens.size, dtype=bool)
        for special_id in self.special_ids:
            ordinary &= tokens != special_id
        ordinary[cu_seqlens[:-1]] = False
        ordinary[cu_seqlens[1:] - 1] = False
        return ordinary

    def _choose(
        self,
        tokens: np.ndarray,
        ordinary: np.ndarray,
        cu_seqlens: np.ndarray,
        sample_keys: np.ndarray,
        mask_B: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Choose the places for masking.

        Returns:
            The places, int64 [C]; a draw for each that decides what happens to it, uint32 [C]; and the number below
            which these draws are uniform.
        """
        draws = packed_draws(stream_keys(sample_keys, _STREAM_CHOSEN), cu_seqlens)
        is_chosen = _below(draws, mask_B, np.diff(cu_seqlens))
        if self.word_starts is None:
            is_chosen &= ordinary
            chosen = np.flatnonzero(is_chosen)
            # A draw below its threshold is uniform below it, so it can decide what happens to the token too.
            return chosen, draws.take(chosen), int(mask_B.max())
        begins_word = self.word_starts(tokens)
        begins_word[cu_seqlens[:-1]] = True
        begins_word[np.minimum(cu_seqlens[:-1] + 1, tokens.size - 1)] = True  # a chunk may begin inside a word
        word_of_token = np.cumsum(begins_word, dtype=np.int32)
        word_of_token -= 1
        is_chosen = is_chosen.take(np.flatnonzero(begins_word)).take(word_of_token)
        is_chosen &= ordinary
        chosen = np.flatnonzero(is_chosen)
        return chosen, _draws_of(chosen, cu_seqlens, sample_keys, _STREAM_FATE), DRAWS

    def _mask(
        self,
        source: np.ndarray,
        chosen: np.ndarray,
        fates: np.ndarray,
        span: int,
        cu_seqlens: np.ndarray,
        sample_keys: np.ndarray,
    ) -> None:
        """Mask, replace or keep the chosen tokens, in place, by their ``fates``, which are uniform below ``span``."""
        masked, random = round(_MASK_SHARE * span), round((_MASK_SHARE + _RANDOM_SHARE) * span)
        source[chosen[fates < masked]] = self.mask_id
        replaced = chosen[(fates >= masked) & (fates < random)]
        draws = _draws_of(replaced, cu_seqlens, sample_keys, _STREAM_TOKEN).astype(np.uint64)
        source[replaced] = draws * np.uint64(self.vocab_size) // np.uint64(DRAWS)


def _below(draws: np.ndarray, threshold_B: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """bool [N], whether each draw is below its sequence's threshold."""
    if (threshold_B == threshold_B[0]).all():
        return draws < threshold_B[0]
    return draws < np.repeat(threshold_B, lengths)


def _draws_of(places: np.ndarray, cu_seqlens: np.ndarray, sample_keys: np.ndarray, stream: int) -> np.ndarray:
    """Draws of one stream at some places of the batch, in rising order. Each has the number of its place in its
    sequence.
    """
    counts = _counts_by_row(places, cu_seqlens)
    keys = np.repeat(stream_keys(sample_keys, stream), counts)
    return draws_at(keys, places - np.repeat(cu_seqlens[:-1], counts))


def _shuffled(tokens: np.ndarray, moved: np.ndarray, draws: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
    """A copy in which the tokens at ``moved`` (int64 [P], rising) have changed places within their sequences.

    Tokens are sorted by their random draws. All draws of moved tokens are below the same threshold, so their order is
    uniform. Draw and place are joined into one word and sorted together, because NumPy sorts words many times faster
    than it computes an argsort, and 32-bit words twice as fast as 64-bit ones.
    """
    bounds = np.searchsorted(moved, cu_seqlens)
    start_P = np.repeat(cu_seqlens[:-1], np.diff(bounds))
    place_P = moved - start_P
    longest = int(np.diff(cu_seqlens).max())
    word, place_bits = (np.uint32, 32 - _ORDER_BITS) if longest <= 2 ** (32 - _ORDER_BITS) else (np.uint64, 32)
    words = draws.take(moved).astype(word, copy=False)
    words &= word(2**_ORDER_BITS - 1)
    words <<= word(place_bits)
    words |= place_P.astype(word)
    for begin, end in itertools.pairwise(bounds.tolist()):
        words[begin:end].sort()
    words &= word(2**place_bits - 1)
    start_P += words.astype(np.int64)
    shuffled = tokens.copy()
    shuffled[moved] = tokens.take(start_P)
    return shuffled


class _Parts:
    """Which tokens of a packed batch go to the source and which to the target. At first, all go to both."""

    def __init__(self, num_tokens: int, cu_seqlens: np.ndarray):
        self._cu_seqlens, self._begins, self._lengths = cu_seqlens, cu_seqlens[:-1], np.diff(cu_seqlens)
        self._in_source, self._in_target = np.ones(num_tokens, dtype=bool), np.ones(num_tokens, dtype=bool)
        #: places of the first tokens of segments, which become [MASK] in the source
        self._stands = np.zeros(0, dtype=np.int64)
        #: those of them that stand behind another segment, and a [MASK], in the target
        self._behind = np.zeros(0, dtype=np.int64)

    def continue_prefixes(self, is_continued: np.ndarray, sample_keys: np.ndarray) -> None:
        """The source of a continued sample (bool [B]) leaves out the rest; its target leaves out the prefix."""
        begins, ends = self._begins[is_continued] + 1, self._cu_seqlens[1:][is_continued] - 1
        cuts = begins + prefix_lengths(ends - begins, sample_keys[is_continued])
        self._in_source &= _outside(cuts, ends, self._in_source.size)
        self._in_target &= _outside(begins, cuts, self._in_target.size)

    def fill_in(self, is_filled: np.ndarray, share: float, sample_keys: np.ndarray) -> None:
        """The target of a filled sample (bool [B]) is its segments; of each the source keeps the place."""
        begins, lengths = self._begins[is_filled] + 1, self._lengths[is_filled] - 2
        places, sizes = segments(lengths, share, sample_keys[is_filled])
        is_there = sizes > 0
        starts = (places + begins[:, None])[is_there]
        in_segment = ~_outside(starts, starts + sizes[is_there], self._in_source.size)
        in_text = ~_outside(begins, begins + lengths, self._in_source.size)
        self._in_source &= ~in_segment
        self._in_source[starts] = True
        self._in_target &= ~in_text | in_segment
        self._stands = starts
        self._behind = (places + begins[:, None])[:, 1:][is_there[:, 1:]]

    def cut(
        self, source: np.ndarray, tokens: np.ndarray, ordinary: np.ndarray, chosen: np.ndarray, mask_id: int
    ) -> CorruptedBatch:
        """The batch. Arguments as in `Corruption.__call__`; continued and filled texts have no noise."""
        if self._stands.size:
            source, ordinary = source.copy(), ordinary.copy()
            source[self._stands] = mask_id
            ordinary[self._stands] = False
        copies = self._in_target.astype(np.int64)
        copies[self._behind] = 2
        target = np.repeat(tokens, copies)
        target_ends = np.cumsum(copies)
        target[target_ends[self._behind] - 2] = mask_id
        source_ends = np.cumsum(self._in_source)
        return CorruptedBatch(
            source=source[self._in_source],
            source_cu_seqlens=_ends_of_rows(source_ends, self._cu_seqlens),
            target=target,
            target_cu_seqlens=_ends_of_rows(target_ends, self._cu_seqlens),
            chosen=source_ends[chosen] - 1,
            chosen_labels=tokens.take(chosen),
            num_ordinary=int(np.count_nonzero(ordinary & self._in_source)),
        )


def _ends_of_rows(running: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
    """int64 [B + 1], from a running count over the tokens of all rows; no row is empty."""
    return np.concatenate(([0], running[cu_seqlens[1:] - 1]))


def prefix_lengths(lengths: np.ndarray, sample_keys: np.ndarray) -> np.ndarray:
    """Tokens of each continuation's source: int64 [B].

    The number is uniform over the whole numbers from 70 to 80% of the length. If there is none, it is the number
    nearest to 75% that leaves a token on both sides. A text of one token goes to the source.
    """
    least, most = -(-lengths * _PREFIX_TENTHS[0] // 10), lengths * _PREFIX_TENTHS[1] // 10
    draws = draws_at(stream_keys(sample_keys, _STREAM_PREFIX), np.zeros(lengths.size, dtype=np.uint32)).astype(np.int64)
    drawn = least + draws * np.maximum(most - least + 1, 0) // DRAWS
    nearest = np.clip((3 * lengths + 2) // 4, 1, np.maximum(lengths - 1, 1))
    return np.minimum(np.where(most >= least, drawn, nearest), lengths)


def _outside(begins: np.ndarray, ends: np.ndarray, size: int) -> np.ndarray:
    """bool [size], False in the spans from ``begins`` to ``ends``, which do not overlap."""
    steps = np.zeros(size + 1, dtype=np.int8)
    steps[begins] += 1
    steps[ends] -= 1
    return np.cumsum(steps[:-1], dtype=np.int8) == 0


def _counts_by_row(places: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
    """int64 [B], how many of the rising places lie in each sequence."""
    return np.diff(np.searchsorted(places, cu_seqlens))
