"""WordPiece for many plain words at once, in NumPy: the longest piece of the vocabulary first, like the tokenizer.

Plain words are of ASCII letters and digits: BERT's normalizer does at most lowercase them, and its pre-tokenizer does
not cut them.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_prep.tokenise.keys import MAX_BYTES, KeyTable, joined, pack

_IS_PLAIN = np.zeros(256, dtype=bool)
_IS_PLAIN[[ord(character) for character in string.ascii_letters + string.digits]] = True
_LOWER = np.arange(256, dtype=np.uint8)
_LOWER[ord("A") : ord("Z") + 1] += 32
_FEW = 128  # words that are cheaper for the tokenizer than another round here


class PlainWordPiece:
    """Encodes words of ASCII letters and digits, of at most :data:`~data_prep.tokenise.keys.MAX_BYTES` bytes each.

    Args:
        state: the content of ``tokenizer.json``, of a BERT tokenizer.

    Raises:
        ValueError: the unknown token is not in the vocabulary.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        model = state["model"]
        vocabulary: dict[str, int] = model["vocab"]
        if model["unk_token"] not in vocabulary:
            raise ValueError(f"the unknown token {model['unk_token']!r} is not in the vocabulary")
        self._unknown = vocabulary[model["unk_token"]]
        self._lowercase = bool(state["normalizer"]["lowercase"])
        self._max_bytes = int(model["max_input_chars_per_word"])
        prefix = model["continuing_subword_prefix"]
        skip = len(prefix)
        self._first = _Pieces(vocabulary)
        self._next = _Pieces({token[skip:]: index for token, index in vocabulary.items() if token.startswith(prefix)})

    def __call__(self, data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the words ``data[start:start + length]``.

        Args:
            data: uint8, from :func:`~data_prep.tokenise.keys.padded`.
            starts: int64 [n].
            lengths: int64 [n], positive.

        Returns:
            The ids of the words back to back, uint32, and how many each has, int64 [n]; 0 for the few words of many
            pieces that are left to the tokenizer.
        """
        data = _LOWER[data] if self._lowercase else data
        counts = np.zeros(len(starts), dtype=np.int64)
        is_unknown = lengths > self._max_bytes
        rounds: list[tuple[np.ndarray, np.ndarray]] = []  # words that go on, and the next id of each
        words = np.flatnonzero(~is_unknown)
        begins, ends = starts[words], starts[words] + lengths[words]
        while len(words) > _FEW:
            pieces = self._next if rounds else self._first
            ids, sizes = pieces.longest(data, begins, ends - begins)
            is_unknown[words[sizes == 0]] = True
            rounds.append((words, ids))
            counts[words] += 1
            begins = begins + sizes
            goes_on = (sizes > 0) & (begins < ends)
            words, begins, ends = words[goes_on], begins[goes_on], ends[goes_on]
        counts[is_unknown] = 1
        counts[words] = 0
        offsets = np.cumsum(counts) - counts
        result = np.full(int(counts.sum()), self._unknown, dtype=np.uint32)
        for number, (words, ids) in enumerate(rounds):
            known = counts[words] > number
            known &= ~is_unknown[words]
            result[offsets[words[known]] + number] = ids[known]
        return result, counts


class _Pieces:
    """Ids of the plain strings among ``spelled``, looked up by the longest match."""

    def __init__(self, spelled: Mapping[str, int]) -> None:
        plain = [piece for piece in spelled if piece.isascii() and piece.isalnum() and len(piece) <= MAX_BYTES]
        ids = np.array([spelled[piece] for piece in plain], dtype=np.uint32)
        data, starts, lengths = joined(plain)
        self._lengths: list[int] = np.unique(lengths)[::-1].tolist()
        # Strings of up to 7, 15, 23 and 31 bytes have keys of 1 to 4 columns.
        self._tables: dict[int, tuple[KeyTable, np.ndarray]] = {}
        for columns in {length // 8 + 1 for length in self._lengths}:
            chosen = lengths // 8 + 1 == columns
            table = KeyTable(columns)
            table.add(pack(data, starts[chosen], lengths[chosen], columns))
            self._tables[columns] = table, np.append(np.uint32(0), ids[chosen])

    def longest(self, data: np.ndarray, begins: np.ndarray, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The longest piece at each place that fits into its room: ids uint32 and lengths int64, 0 where none is."""
        ids = np.zeros(len(begins), dtype=np.uint32)
        sizes = np.zeros(len(begins), dtype=np.int64)
        open_ = np.arange(len(begins))
        for length in self._lengths:
            tried = open_[room[open_] >= length]
            if not len(tried):
                continue
            columns = length // 8 + 1
            table, indexes = self._tables[columns]
            found = table.find(pack(data, begins[tried], length, columns))
            hit = found > 0
            ids[tried[hit]] = indexes[found[hit]]
            sizes[tried[hit]] = length
            open_ = open_[sizes[open_] == 0]
        return ids, sizes


def are_plain(data: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Whether each word is of ASCII letters and digits alone, bool [n]; the words are not empty and fill ``data``."""
    return np.logical_and.reduceat(_IS_PLAIN[data], starts) if len(starts) else np.zeros(0, dtype=bool)
