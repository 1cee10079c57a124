"""Beam search in a graph of slots: prefixes of outputs, and at which slot they end.

Slots are visited from the first to the last. A state is a slot and the text written on the way to it; ways that write
the same text are one state, whose probability is their sum. Each state of a slot goes on to later slots with one of
their likely tokens. With a beam that drops nothing, the search finds the most probable outputs exactly.

Source: Huang et al., Directed Acyclic Transformer Pre-training for High-quality Non-autoregressive Text Generation,
TACL 2023, for the search; states are merged as in Hannun et al., 2014.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

#: nats of a token behind a text
LanguageModel = Callable[[tuple[int, ...], int], float]


class OutputRule(Protocol):
    """What texts are allowed. A state says what of a text matters for that; the state of the empty text is 0."""

    def after(self, state: int, token: int) -> int:
        """The state after one more token; -1: the text is not allowed, and no longer one is."""

    def may_end(self, state: int) -> bool:
        """Whether the text may end here."""


@dataclass(frozen=True)
class BeamOptions:
    """What a beam keeps.

    Attributes:
        beam_size: texts that each slot keeps.
        candidates: ways that are followed from each slot: the most probable pairs of a later slot and its token; with
            rules, of those that a text may go.
        lm: gives the nats of a token behind a text (a tuple of ids, empty for the first); None: no language model.
        lm_weight: what these nats are multiplied by.
        lm_end: gives the nats of a text's end, for the language model; None: 0.
        rule: what outputs are allowed; None: all.
        no_repeat_ngram_size: no n-gram of this many tokens occurs twice in an output; 0: no such limit.
        banned_sequences: tokens that no output holds one behind the other.

    Raises:
        ValueError: a number out of its range.
    """

    beam_size: int = 20
    candidates: int = 5
    lm: LanguageModel | None = None
    lm_weight: float = 0.0
    lm_end: Callable[[tuple[int, ...]], float] | None = None
    rule: OutputRule | None = None
    no_repeat_ngram_size: int = 0
    banned_sequences: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("beam_size", 1), ("candidates", 1), ("no_repeat_ngram_size", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}: give a whole number of at least {least}")
        if not math.isfinite(self.lm_weight):
            raise ValueError(f"lm_weight is {self.lm_weight}: give a finite number")

    def longest_allowed(self, tokens: Sequence[int]) -> int:
        """Tokens of the longest beginning of a text that keeps all rules."""
        states, text, longest = _RememberedStates(self), tuple(tokens), 0
        for end in range(1, len(text) + 1):
            if states(text[:end]) < 0:
                break
            if states.may_end(text[:end]):
                longest = end
        return longest

    def allow(self, tokens: Sequence[int]) -> bool:
        """Whether a whole text keeps all rules."""
        return self.longest_allowed(tokens) == len(tokens)


class Found(NamedTuple):
    """An output: its tokens, its log-probability summed over paths, and the score it is ranked by."""

    tokens: tuple[int, ...]
    log_prob: float
    score: float


def search(
    tokens_LC: np.ndarray,
    log_probs_LC: np.ndarray,
    links_LL: np.ndarray,
    options: BeamOptions,
    *,
    length_penalty: float = 1.0,
    merge_duplicates: bool = True,
    min_length: int = 0,
    max_length: int | None = None,
) -> list[Found]:
    """The outputs of one graph that the beam found, best first; none if the limits or the beam shut all of them out.

    The score is (log-probability + lm_weight * nats of the language model) / length ** length_penalty. Where no output
    has ``min_length`` tokens, the longest ones are returned.

    Args:
        tokens_LC: int64 [L, C], likely tokens of each slot; ``log_probs_LC``: float64, their log-probabilities.
        links_LL: float64 [L, L], log-probability of each link; -inf where there is none.
        options: the beam.
        length_penalty, merge_duplicates, min_length, max_length: see `bnb_ds.dag.strategies.DagOptions`.
    """
    num_slots = len(tokens_LC)
    slots: list[dict[tuple[int, ...], float]] = [{} for _ in range(num_slots)]
    nats = _RememberedNats(options)
    states = _RememberedStates(options)
    longest = math.inf if max_length is None else max(max_length, min(num_slots, 2))

    def score(text: tuple[int, ...], log_prob: float) -> float:
        return (log_prob + nats(text)) / max(len(text), 1) ** length_penalty

    for token, log_prob in zip(tokens_LC[0].tolist(), log_probs_LC[0].tolist(), strict=True):
        if states((token,)) >= 0:
            _add(slots[0], (token,), log_prob)
    for slot in range(num_slots - 1):
        # Ranked by score, which is what the end is ranked by, so that texts of several lengths live side by side.
        kept = heapq.nlargest(options.beam_size, slots[slot].items(), key=lambda item: score(*item))
        slots[slot] = {}
        # Rules may shut out the most probable ways; then others take their places.
        most = None if states.has_rules else options.candidates
        ways = _ways_on(tokens_LC[slot + 1 :], log_probs_LC[slot + 1 :], links_LL[slot, slot + 1 :], most)
        for text, log_prob in kept:
            num_left = options.candidates
            for place, token, gained in ways:
                is_same = merge_duplicates and token == text[-1]
                longer = text if is_same else (*text, token)
                if not is_same and states(longer) < 0:
                    continue
                if is_same or len(text) < longest:
                    _add(slots[slot + 1 + place], longer, log_prob + gained)
                num_left -= 1
                if num_left == 0:
                    break
    ends = ((text, log_prob) for text, log_prob in slots[-1].items() if states.may_end(text))
    found = [Found(text, log_prob, score(text, log_prob + nats.of_end(text))) for text, log_prob in ends]
    enough = min(min_length, max((len(one.tokens) for one in found), default=0))
    return sorted((one for one in found if len(one.tokens) >= enough), key=lambda one: -one.score)


class _RememberedNats:
    """Weighted nats of the language model of whole texts; a text is asked about once."""

    def __init__(self, options: BeamOptions):
        self._options = options
        self._of: dict[tuple[int, ...], float] = {(): 0.0}

    def __call__(self, text: tuple[int, ...]) -> float:
        lm = self._options.lm
        if lm is None:
            return 0.0
        if text not in self._of:
            self._of[text] = self(text[:-1]) + self._options.lm_weight * lm(text[:-1], text[-1])
        return self._of[text]

    def of_end(self, text: tuple[int, ...]) -> float:
        """Weighted nats of the end of a text."""
        lm, lm_end = self._options.lm, self._options.lm_end
        return 0.0 if lm is None or lm_end is None else self._options.lm_weight * lm_end(text)


class _RememberedStates:
    """The states of texts, of which all beginnings are allowed, under the rules; -1: not allowed."""

    def __init__(self, options: BeamOptions):
        self._rule, self._size = options.rule, options.no_repeat_ngram_size
        self._banned = options.banned_sequences
        self.has_rules = self._rule is not None or self._size > 0 or bool(self._banned)
        self._of: dict[tuple[int, ...], int] = {(): 0}

    def __call__(self, text: tuple[int, ...]) -> int:
        if not self.has_rules:
            return 0
        if text not in self._of:
            self._of[text] = -1 if self._is_broken(text) else self._after(text)
        return self._of[text]

    def _after(self, text: tuple[int, ...]) -> int:
        return 0 if self._rule is None else self._rule.after(self(text[:-1]), text[-1])

    def _is_broken(self, text: tuple[int, ...]) -> bool:
        """By the last token."""
        if any(text[-len(words) :] == words for words in self._banned):
            return True
        size = self._size
        if not 0 < size < len(text):
            return False
        last = text[-size:]
        return any(text[begin : begin + size] == last for begin in range(len(text) - size))

    def may_end(self, text: tuple[int, ...]) -> bool:
        """Whether the text may end here."""
        return self._rule is None or self._rule.may_end(self(text))


def _ways_on(
    tokens_JC: np.ndarray, log_probs_JC: np.ndarray, links_J: np.ndarray, count: int | None
) -> list[tuple[int, int, float]]:
    """The most probable ways on from a slot: which of the J later slots, its token, and the nats of both.

    ``count`` is how many; None: all.
    """
    gained = (links_J[:, None] + log_probs_JC).ravel()
    order = np.argsort(-gained, kind="stable")[:count]
    order = order[gained[order] > -math.inf]
    places = order // tokens_JC.shape[1]
    return list(zip(places.tolist(), tokens_JC.ravel()[order].tolist(), gained[order].tolist(), strict=True))


def _add(texts: dict[tuple[int, ...], float], text: tuple[int, ...], log_prob: float) -> None:
    known = texts.get(text, -math.inf)
    high, low = max(known, log_prob), min(known, log_prob)
    texts[text] = high if low == -math.inf else high + math.log1p(math.exp(low - high))
