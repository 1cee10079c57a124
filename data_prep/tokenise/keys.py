"""Short byte strings as rows of numbers, and an exact hash table of such rows, in NumPy.

A key is ``columns`` 64-bit numbers: the bytes of the string, zeros, and the length in the last byte. Two strings have
the same key only if they are equal, so a table that compares keys cannot err, however its hash collides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], dtype=np.uint64)
# Odd and without pattern; the top bits of the products' sum are the place in the table.
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], dtype=np.uint64)
MAX_COLUMNS = len(_FACTORS)
MAX_BYTES = 8 * MAX_COLUMNS - 1  # of a string that has a key
_SMALLEST_BITS = 10


def padded(data: np.ndarray) -> np.ndarray:
    """A copy of uint8 ``data`` that :func:`pack` may read past the end of."""
    return np.concatenate([data, np.zeros(8 * MAX_COLUMNS, dtype=np.uint8)])


def joined(words: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ASCII words back to back: what :func:`padded` gives, their starts, and their lengths, int64 [n] each."""
    lengths = np.array([len(word) for word in words], dtype=np.int64)
    data = padded(np.frombuffer("".join(words).encode("ascii"), dtype=np.uint8))
    return data, np.cumsum(lengths) - lengths, lengths


def pack(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray | int, columns: int) -> np.ndarray:
    """The keys of the strings ``data[start:start + length]``, of at most ``8 * columns - 1`` bytes each.

    Args:
        data: uint8, from :func:`padded`.
        starts: int64 [n].
        lengths: int64 [n], or one number for all.
        columns: at most :data:`MAX_COLUMNS`.

    Returns:
        uint64 [columns, n].
    """
    windows = np.ndarray(len(data) - 7, dtype="<u8", buffer=data, strides=(1,))  # every eight consecutive bytes
    keys = np.empty((columns, len(starts)), dtype=np.uint64)
    for column in range(columns):
        keys[column] = windows[starts + 8 * column] if column else windows[starts]
        keys[column] &= _MASKS[np.clip(lengths - 8 * column, 0, 8)]
    keys[-1] |= np.asarray(lengths).astype(np.uint64) << np.uint64(56)
    return keys


class KeyTable:
    """Numbers keys from 1, in the order in which they are added."""

    def __init__(self, columns: int) -> None:
        self._keys = np.zeros((columns, 1), dtype=np.uint64)  # column 0 of them is no key: its length is 0
        self._used = 1
        self._place(_SMALLEST_BITS)

    def __len__(self) -> int:
        return self._used - 1

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The number of each key of a uint64 [columns, n], 0 for one that is not in the table; int64 [n]."""
        slots = self._first_slots(keys)
        found = self._slots[slots]
        wrong = np.flatnonzero(self._differ(found, keys))
        while len(wrong):  # the slot is another key's or nobody's
            wrong = wrong[found[wrong] != 0]
            slots[wrong] = (slots[wrong] + 1) & (len(self._slots) - 1)
            found[wrong] = self._slots[slots[wrong]]
            wrong = wrong[self._differ(found[wrong], keys[:, wrong])]
        return found

    def add(self, keys: np.ndarray) -> None:
        """Add keys, all different, of which the table has none yet."""
        begin, self._used = self._used, self._used + keys.shape[1]
        if self._used > self._keys.shape[1]:
            grown = np.zeros((len(keys), 2 * self._used), dtype=np.uint64)
            grown[:, :begin] = self._keys[:, :begin]
            self._keys = grown
        self._keys[:, begin : self._used] = keys
        if 4 * self._used > len(self._slots):
            self._place((8 * self._used).bit_length())
        else:
            self._insert(np.arange(begin, self._used))

    def _place(self, bits: int) -> None:
        self._shift = np.uint64(64 - bits)
        self._slots = np.zeros(1 << bits, dtype=np.int64)
        self._insert(np.arange(1, self._used))

    def _insert(self, numbers: np.ndarray) -> None:
        slots = self._first_slots(self._keys[:, numbers])
        while len(numbers):
            free = self._slots[slots] == 0
            self._slots[slots[free]] = numbers[free]
            lost = self._slots[slots] != numbers  # taken, or another wanted it too and came last
            numbers, slots = numbers[lost], (slots[lost] + 1) & (len(self._slots) - 1)

    def _first_slots(self, keys: np.ndarray) -> np.ndarray:
        mixed = keys[0] * _FACTORS[0]
        for column in range(1, len(keys)):
            mixed += keys[column] * _FACTORS[column]
        return (mixed >> self._shift).view(np.int64)

    def _differ(self, numbers: np.ndarray, keys: np.ndarray) -> np.ndarray:
        differ = self._keys[0, numbers] != keys[0]
        for column in range(1, len(keys)):
            differ |= self._keys[column, numbers] != keys[column]
        return differ
