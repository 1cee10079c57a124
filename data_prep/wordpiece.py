"""WordPiece for many plain words at once, in NumPy: the longest piece of the vocabulary first, like the tokenizer.

Plain words are of ASCII letters and digits: BERT's normalizer does at most lowercase them, and its pre-tokenizer does
not cut them.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_prep.keys import MAX_BYTES, KeyTable, pack, padded

_IS_PLAIN = np.zeros(256, dtype=bool)
_IS_PLAIN[[ord(character) for character in string.ascii_letters + string.digits]] = True
_LOWER = np.arange(256, dtype=np.uint8)
_LOWER[ord("A") : ord("Z") + 1] += 32


class PlainWordPiece:
    """Encodes words of ASCII letters and digits, of at most :data:`~data_prep.keys.MAX_BYTES` bytes each.

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
        self._first = _Pieces(vocabulary, {token: token for token in vocabulary})
        self._next = _Pieces(vocabulary, {token: token[skip:] for token in vocabulary if token.startswith(prefix)})

    def __call__(self, data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the words ``data[start:start + length]``.

        Args:
            data: uint8, from :func:`~data_prep.keys.padded`.
            starts: int64 [n].
            lengths: int64 [n], positive.

        Returns:
            The ids of all words back to back, uint32, and how many each has, int64 [n].
        """
        data = _LOWER[data] if self._lowercase else data
        counts = np.zeros(len(starts), dtype=np.int64)
        is_unknown = lengths > self._max_bytes
        rounds: list[tuple[np.ndarray, np.ndarray]] = []  # words that go on, and the next id of each
        words = np.flatnonzero(~is_unknown)
        begins, ends = starts[words], starts[words] + lengths[words]
        while len(words):
            pieces = self._next if rounds else self._first
            ids, sizes = pieces.longest(data, begins, ends - begins)
            is_unknown[words[sizes == 0]] = True
            rounds.append((words, ids))
            counts[words] += 1
            begins = begins + sizes
            goes_on = (sizes > 0) & (begins < ends)
            words, begins, ends = words[goes_on], begins[goes_on], ends[goes_on]
        counts[is_unknown] = 1
        offsets = np.cumsum(counts) - counts
        result = np.full(int(counts.sum()), self._unknown, dtype=np.uint32)
        for number, (words, ids) in enumerate(rounds):
            known = ~is_unknown[words]
            result[offsets[words[known]] + number] = ids[known]
        return result, counts


class _Pieces:
    """The plain strings among ``spelled``, looked up by the longest match; the vocabulary gives their ids."""

    def __init__(self, vocabulary: Mapping[str, int], spelled: Mapping[str, str]) -> None:
        # Strings of up to 7, 15, 23 and 31 bytes have keys of 1 to 4 columns.
        self._tables: dict[int, tuple[KeyTable, np.ndarray]] = {}
        plain = [
            (len(piece), piece, vocabulary[token])
            for token, piece in spelled.items()
            if piece.isascii() and piece.isalnum() and len(piece) <= MAX_BYTES
        ]
        self._lengths = sorted({length for length, _, _ in plain}, reverse=True)
        for columns in {length // 8 + 1 for length in self._lengths}:
            chosen = [(length, piece, index) for length, piece, index in plain if length // 8 + 1 == columns]
            lengths = np.array([length for length, _, _ in chosen])
            data = padded(np.frombuffer("".join(piece for _, piece, _ in chosen).encode("ascii"), dtype=np.uint8))
            table = KeyTable(columns)
            table.add(pack(data, np.cumsum(lengths) - lengths, lengths, columns))
            self._tables[columns] = table, np.array([0, *(index for _, _, index in chosen)], dtype=np.uint32)

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
