"""What outputs may not hold: limits on lengths, repeated n-grams, and bad words of several tokens.

Shapes: B sequences, T slots of the longest, W prefixes of a beam, K classes of a slot, C candidates of the next beam, S
tokens of the longest prefix so far.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from bnb_ds.decoding.options import DecodeOptions

#: Knuth's multiplier; products wrap around in int64. A hash is a polynomial in it, so that of a part is a difference.
HASH_FACTOR = 6364136223846793005
_WRAP = 1 << 64
_SHORT_PENALTY = 1e6  # nats for each token that a prefix can no longer reach; prefixes that can reach it rank first


class Limits:
    """The limits on the prefixes of a beam search, slot by slot.

    Args:
        options: the limits.
        lengths_B: slots of each sequence, longest first.
        num_steps: T.
        beam_size: W.
    """

    def __init__(self, options: DecodeOptions, lengths_B: Tensor, num_steps: int, beam_size: int):
        self._options = options
        self._lengths_B = lengths_B
        self._step = 0
        shape, device = (lengths_B.numel(), beam_size), lengths_B.device
        self._ngrams = None
        if options.no_repeat_ngram_size:
            self._ngrams = _Ngrams(options.no_repeat_ngram_size, num_steps, shape, device)
        self._automata: list[_Automaton] = []
        if options.banned_sequences:
            self._automata.append(_Automaton(_Sequences(options.banned_sequences, device), shape, device))
        if options.bad_words:
            self._automata.append(_Automaton(options.bad_words, shape, device))

    def keep_rows(self, num_rows: int) -> None:
        """Leave out all sequences but the first ones."""
        self._lengths_B = self._lengths_B[:num_rows]
        for part in (self._ngrams, *self._automata):
            if part is not None:
                part.keep_rows(num_rows)

    def forbidden(self, lengths_BW: Tensor, hashes_BW: Tensor, ids_BK: Tensor) -> Tensor | None:
        """bool [B, W, K], True at extensions that break a limit; None: none does."""
        found = []
        if self._options.max_length is not None:
            found.append((lengths_BW >= self._options.max_length)[..., None])
        if self._ngrams is not None:
            found.append(self._ngrams.forbidden(lengths_BW, hashes_BW, ids_BK))
        found += [automaton.forbidden(ids_BK) for automaton in self._automata]
        return functools.reduce(torch.logical_or, found) if found else None

    def ranked(self, rank_BC: Tensor, lengths_BW: Tensor, prefix_C: Tensor) -> Tensor:
        """The rank of each candidate, less what it is short of ``min_length``.

        Args:
            rank_BC: in nats; prefixes as they are, then extensions.
            lengths_BW: of the prefixes.
            prefix_C: the prefix of each candidate.
        """
        self._step += 1
        if self._options.min_length == 0:
            return rank_BC
        longer_BW = (lengths_BW + 1).index_select(1, prefix_C[lengths_BW.shape[1] :])
        slots_left_B = (self._lengths_B - self._step).clamp(min=0)
        return rank_BC - short_penalty(
            torch.cat((lengths_BW, longer_BW), 1), self._lengths_B, slots_left_B, self._options
        )

    def follow(self, chosen_BW: Tensor, prefix_BW: Tensor, lengths_BW: Tensor, hashes_BW: Tensor) -> None:
        """Go on with the chosen candidates.

        Args:
            chosen_BW: the candidates.
            prefix_BW: the prefix of each.
            lengths_BW, hashes_BW: their own.
        """
        if self._ngrams is not None:
            self._ngrams.follow(prefix_BW, lengths_BW, hashes_BW)
        for automaton in self._automata:
            automaton.follow(chosen_BW)


class _Ngrams:
    """Which n-grams a prefix holds, by the hashes of all its beginnings.

    The hash of a part is that of the beginning with it, less that of the beginning before it times a power of
    `HASH_FACTOR`. Behind a prefix the hashes are 0, and what comes out there is the hash of no n-gram.
    """

    def __init__(self, size: int, num_steps: int, shape: tuple[int, int], device: torch.device):
        self._size = size
        self._now, self._next = torch.zeros(2, num_steps + 1, *shape, dtype=torch.int64, device=device)
        self._num_known = 1  # beginnings of the longest prefix, with the empty one

    def keep_rows(self, num_rows: int) -> None:
        self._now, self._next = self._now[:, :num_rows], self._next[:, :num_rows]

    def forbidden(self, lengths_BW: Tensor, hashes_BW: Tensor, ids_BK: Tensor) -> Tensor:
        known_SBW = self._now[: self._num_known]
        held_SBW = known_SBW[self._size :] - known_SBW[: -self._size] * _power(self._size)
        before_BW = known_SBW.gather(0, (lengths_BW - self._size + 1).clamp(min=0)[None])[0]
        last_BW = hashes_BW - before_BW * _power(self._size - 1)
        new_BWK = (last_BW * HASH_FACTOR)[..., None] + (ids_BK + 1)[:, None]
        return (held_SBW[..., None] == new_BWK).any(0)

    def follow(self, prefix_BW: Tensor, lengths_BW: Tensor, hashes_BW: Tensor) -> None:
        index_SBW = prefix_BW.expand(self._num_known, -1, -1)
        self._next[: self._num_known] = self._now[: self._num_known].gather(2, index_SBW)
        self._now, self._next = self._next, self._now
        self._num_known += 1
        self._now.scatter_(0, lengths_BW[None], hashes_BW[None])


class _States(Protocol):
    """The states of an automaton, from 0, where prefixes begin."""

    def after_all(self, states_BW: Tensor, ids_BK: Tensor) -> Tensor:
        """int64 [B, W, K], the state of each extension of each prefix; -1: it is forbidden."""


class _Automaton:
    """The state of each prefix in an automaton."""

    def __init__(self, states: _States, shape: tuple[int, int], device: torch.device):
        self._states = states
        self._now_BW = torch.zeros(shape, dtype=torch.int64, device=device)

    def keep_rows(self, num_rows: int) -> None:
        self._now_BW = self._now_BW[:num_rows]

    def forbidden(self, ids_BK: Tensor) -> Tensor:
        self._longer_BWK = self._states.after_all(self._now_BW, ids_BK)
        return self._longer_BWK < 0

    def follow(self, chosen_BW: Tensor) -> None:
        # An extension that is forbidden can be chosen only for an unused place, whose state does not matter.
        states_BC = torch.cat((self._now_BW, self._longer_BWK.flatten(1).clamp(min=0)), 1)
        self._now_BW = states_BC.gather(1, chosen_BW)


class _Sequences:
    """How far a prefix has gone into each of the banned sequences.

    The states are the beginnings of the sequences. A prefix is in the state of the longest one that it ends in.

    Source: Aho and Corasick, Efficient String Matching, Communications of the ACM 18(6), 1975.
    """

    def __init__(self, sequences: Sequence[tuple[int, ...]], device: torch.device):
        tokens = sorted({token for words in sequences for token in words})
        beginnings = sorted({words[:end] for words in sequences for end in range(len(words))}, key=len)
        number = {beginning: state for state, beginning in enumerate(beginnings)}
        table = torch.zeros(len(beginnings), len(tokens) + 1, dtype=torch.int64)  # the last column is any other token
        for beginning, state in number.items():
            for column, token in enumerate(tokens):
                ways = [(*beginning, token)[begin:] for begin in range(len(beginning) + 1)]
                # -1: the last token of a sequence.
                table[state, column] = -1 if any(way in sequences for way in ways) else _first(ways, number)
        self._table_SC = table.to(device)
        columns = torch.full((tokens[-1] + 2,), len(tokens))
        columns[torch.tensor(tokens)] = torch.arange(len(tokens))
        self._column_V = columns.to(device)

    def after_all(self, states_BW: Tensor, ids_BK: Tensor) -> Tensor:
        column_BK = self._column_V[ids_BK.clamp(max=self._column_V.numel() - 1)]
        return self._table_SC[states_BW[..., None], column_BK[:, None]]


def _first(ways: list[tuple[int, ...]], number: dict[tuple[int, ...], int]) -> int:
    return next((number[way] for way in ways if way in number), 0)


def _power(exponent: int) -> int:
    """`HASH_FACTOR` to this power, as int64."""
    power = pow(HASH_FACTOR, exponent, _WRAP)
    return power - _WRAP if power >= _WRAP // 2 else power


def short_penalty(lengths_BC: Tensor, slots_B: Tensor, slots_left_B: Tensor, options: DecodeOptions) -> Tensor:
    """Nats [B, C] taken off candidates that cannot reach ``min_length`` with the slots that are left."""
    reachable_BC = lengths_BC + slots_left_B[:, None]
    return (slots_B.clamp(max=options.min_length)[:, None] - reachable_BC).clamp(min=0) * _SHORT_PENALTY


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
    if options.bad_words and not options.bad_words.allow(tokens):
        return False
    return not any(
        tuple(tokens[i : i + len(words)]) == words
        for words in options.banned_sequences
        for i in range(len(tokens) - len(words) + 1)
    )
