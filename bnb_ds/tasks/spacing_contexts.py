"""The contexts by which `bnb_ds.tasks.spacing` tells whether a space stands between two words."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import ClassVar

#: for each place between two words, whether a space stands there
Gaps = list[bool]

_CLOSING = frozenset(",.;:!?)]}%…”»\u2019")
_OPENING = frozenset("([{„«\u2018¿¡$£€#")
_QUOTES = frozenset("\"'“”„«»\u2018\u2019`")
_CLOSING_QUOTES = frozenset("”“»")
#: marks that open in some places and close in others
_PAIRED = frozenset('"“`')
#: marks that contract words, and close single quotes
_APOSTROPHES = frozenset("'\u2019")
_CONTRACTIONS = frozenset(("s", "t", "re", "ve", "ll", "d", "m", "S", "T"))
_LONG_DASHES = frozenset("-\u2013\u2014")
_DASHES = _LONG_DASHES | {"/"}
#: behind these, a quotation mark opens even without a space
_BEFORE_OPENING = _DASHES | frozenset("([{")


@functools.lru_cache(maxsize=1 << 16)
def is_separate(word: str) -> bool:
    """Whether the tokenizer splits text around this word even without spaces: punctuation, or a Chinese character."""
    return len(word) == 1 and not (word.isascii() and word.isalnum())


@functools.lru_cache(maxsize=1 << 16)
def shape(word: str) -> str:
    """A word's shape: itself if it is a sign, else whether it is a number, and how it is capitalised."""
    if is_separate(word):
        return word
    if word.isdigit():
        return "9" * min(len(word), 4)
    if not word.isalpha():
        return "*"
    if len(word) == 1:
        return "X" if word.isupper() else "x"
    return "Xx" if word[0].isupper() else "xx"


class Contexts:
    """Walks through the words of a text from left to right.

    Args:
        words: of one text.
    """

    NUM_KINDS: ClassVar[int] = 23

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._shapes = [shape(word) for word in words]
        self._left: Gaps = [True]  # whether a space stands before each word
        self._open: dict[str, bool] = {}  # for each quotation mark, whether it has opened and not closed
        self._dash = False  # whether a dash with spaces has occurred

    def at(self, i: int) -> tuple[tuple[str, ...], ...]:
        """The contexts of the place between word ``i`` and the next. All places before it must be decided."""
        words, shapes = self._words, self._shapes
        a, c, A, C = words[i], words[i + 1], shapes[i], shapes[i + 1]
        p, P = (words[i - 1], shapes[i - 1]) if i else ("<", "<")
        PP = shapes[i - 2] if i > 1 else "<"
        rest = len(words) - i
        n, N = (words[i + 2], shapes[i + 2]) if rest > 2 else (">", ">")
        N2 = shapes[i + 3] if rest > 3 else ">"
        s = "s" if self._left[i] else "j"
        ss = s + ("s" if i == 0 or self._left[i - 1] else "j")
        q = self._quotes(i)
        return (
            (self._rule(i),),
            (A, C),
            (A, C, ss, q),
            (a, c, s),
            (a, c, s, q),
            (A, C, N, ss),
            (P, A, C, ss),
            (P, A, C, N, ss),
            (P, A, C, N, ss, q),
            (p, a, c, s),
            (a, c, n, s),
            (A, C, n, s, q),
            (p, A, C, s),
            (p, a, c, n),
            (A, C, N, N2, ss, q),
            (PP, P, A, C, ss, q),
            (P, A, c),
            (a, C, N),
            (a[-1], c, N, q),
            (A, c, N),
            (C, n),
            (A, C, N, s, "d" if self._dash else "-"),
            (self._rule(i), A, C, q),
        )

    def decide(self, i: int, gap: bool) -> None:
        """Take in whether a space stands behind word ``i``."""
        word, left = self._words[i], self._left[i]
        self._left.append(gap)
        if word in _QUOTES:
            if (left or self._words[i - 1] in _BEFORE_OPENING) and not gap:
                self._open[word] = True
            elif gap or word not in _APOSTROPHES:
                self._open[word] = False
            if word in _CLOSING_QUOTES and not self._open.get(word):
                self._open["„"] = self._open["«"] = False
        elif word in _LONG_DASHES and left and gap:
            self._dash = True

    def _quotes(self, i: int) -> str:
        words = self._words
        a, c = words[i], words[i + 1]
        if a not in _QUOTES and c not in _QUOTES:
            return ""
        later = c in words[i + 2 :]
        return f"{self._is_open(a):d}{self._is_open(c):d}{later:d}{self._is_open('„'):d}"

    def _is_open(self, mark: str) -> bool:
        return self._open.get(mark, False)

    def _rule(self, i: int) -> str:
        return "space" if self._has_space(i) else "joined"

    def _has_space(self, i: int) -> bool:
        """Whether typography puts a space there."""
        words, shapes = self._words, self._shapes
        a, c, left = words[i], words[i + 1], self._left[i]
        if c in _CLOSING:
            return False
        if a in _APOSTROPHES or a in _PAIRED:
            return self._space_after_quote(i)
        if a in _OPENING:
            return False
        if c == "'" or c in _PAIRED or c == "”":
            return self._space_before_quote(i)
        if a in _DASHES or c in _DASHES:
            # A dash has a space on both sides or on none.
            return left if a in _DASHES else False
        if a in ".,:" and i and shapes[i - 1].startswith("9"):
            return not shapes[i + 1].startswith("9")
        return True

    def _space_after_quote(self, i: int) -> bool:
        a, left = self._words[i], self._left[i]
        if left or self._words[i - 1] in _BEFORE_OPENING:
            return False  # it opens
        if a in _APOSTROPHES and not self._is_open(a):
            # A contraction, or the genitive of a plural: boys' toys.
            return self._words[i - 1].endswith("s") and self._words[i + 1] not in _CONTRACTIONS
        return not is_separate(self._words[i + 1]) or self._words[i + 1] in _OPENING

    def _space_before_quote(self, i: int) -> bool:
        words, c = self._words, self._words[i + 1]
        if self._is_open(c) or c == "”" or (c == "“" and self._is_open("„")):
            return False  # it closes
        if c != "'":
            return True
        follows = words[i + 2] if i + 2 < len(words) else ""
        return follows not in _CONTRACTIONS and not words[i].endswith("s") and c in words[i + 2 :]
