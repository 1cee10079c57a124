"""Tokenising each distinct word once, in NumPy and pyarrow.

A text is cut into *words* at places where BERT's normalizer and pre-tokenizer cut too, whatever stands on either side:
at space, tab, newline and carriage return, and on both sides of ASCII punctuation, of the general punctuation U+2010 to
U+2027 and of the Chinese characters U+4E00 to U+9FFF. The ids of a text are then the ids of its words, one after the
other. Nothing else is cut here: control characters, accents, other spaces, punctuation and scripts stay inside a word,
and the tokenizer itself decides about them when it sees the word for the first time.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute  # else imported by every worker, at its first batch
from tokenizers import Tokenizer

from data_prep.tokenise.keys import MAX_BYTES, MAX_COLUMNS, KeyTable, joined, pack, padded
from data_prep.tokenise.wordpiece import PlainWordPiece, are_plain

# The dictionary is emptied when it has grown past this: memory stays flat over any corpus, in any script.
_MAX_WORDS = 1 << 20
_MAX_LONG_BYTES = 1 << 26
_LONG = 0xFF << 56  # in the place of a key's length

_IS_SPACE = np.zeros(256, dtype=bool)
_IS_SPACE[[ord(character) for character in " \t\n\r"]] = True
_IS_PUNCTUATION = np.zeros(256, dtype=bool)
_IS_PUNCTUATION[[ord(character) for character in string.punctuation]] = True
# One gather answers all: 1 space, 2 punctuation, 4 first byte of a character that may have to stand alone.
_CLASS = _IS_SPACE * np.uint8(1) + _IS_PUNCTUATION * np.uint8(2)
_CLASS[0xE2] = 4
_CLASS[0xE4:0xEA] = 4


_EncodePlain = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class WordEngine:
    """Encodes texts through a dictionary of words; equal, id for id, to encoding the texts whole.

    Args:
        backend: a BERT tokenizer (BertNormalizer, BertPreTokenizer, WordPiece) that does not look for special tokens.

    Raises:
        ValueError: the tokenizer has added tokens, which may hold spaces, or is of another kind.
    """

    def __init__(self, backend: Tokenizer) -> None:
        state = json.loads(backend.to_str())
        kinds = [(state[key] or {}).get("type") for key in ("normalizer", "pre_tokenizer", "model")]
        if kinds != ["BertNormalizer", "BertPreTokenizer", "WordPiece"]:
            raise ValueError("not a BERT WordPiece tokenizer")
        if any(not token["special"] for token in state["added_tokens"]):
            raise ValueError("the tokenizer has added tokens")
        self._backend = backend
        self._encode_plain: _EncodePlain = PlainWordPiece(state)
        self._cuts_chinese = bool(state["normalizer"]["handle_chinese_chars"])
        self._clear()
        self._learn(state["model"]["vocab"])

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of all texts back to back, and where each begins.

        Returns:
            uint32 [num_tokens] and int64 [len(texts) + 1].
        """
        encoded = [text.encode("utf-8") for text in texts]
        ends = np.cumsum([len(data) + 1 for data in encoded], dtype=np.int64)
        data, starts = self._cut(np.frombuffer(b"\n".join([*encoded, b""]), dtype=np.uint8), ends)
        codes, words = _distinct(data, starts[0])
        index = self._lookup(*words)[codes]
        counts = self._counts[index]
        token_ends = np.cumsum(counts)
        num_tokens = int(token_ends[-1]) if len(token_ends) else 0
        # Token t of the output is token (t - first output token of its word) of the word's own ids.
        shift = self._starts[index] - (token_ends - counts)
        ids = self._ids[np.repeat(shift, counts) + np.arange(num_tokens)]
        words_before = np.searchsorted(starts[1], ends)
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        offsets[1:] = np.concatenate([[0], token_ends])[words_before]
        if len(self._table) > _MAX_WORDS or self._num_long_bytes > _MAX_LONG_BYTES:
            self._clear()
        return ids, offsets

    def _clear(self) -> None:
        self._table = KeyTable(MAX_COLUMNS)  # numbers the words from 1
        self._long: dict[bytes, int] = {}  # words too long for a key
        self._num_long_bytes = 0
        self._ids = np.zeros(0, dtype=np.uint32)  # of all words, back to back
        self._starts = np.zeros(1, dtype=np.int64)  # of each word in _ids
        self._counts = np.zeros(1, dtype=np.int64)

    def _learn(self, vocabulary: Iterable[str]) -> None:
        """Begin with the words that the vocabulary holds whole, the most frequent of any corpus."""
        words = [word for word in vocabulary if word.isascii() and word.isalnum()]
        self._lookup(*joined(words))

    def _cut(self, data: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """The bytes without spaces, where each word starts in them, and where it started before.

        Args:
            data: uint8, texts with a newline behind each.
            ends: int64, the place behind the newline of each text.

        Returns:
            uint8 [num_bytes], and a pair of int64 [num_words].
        """
        kind = _CLASS[data]
        space = (kind & 1).view(bool)
        alone = kind == 2
        # A word begins after a space or a character that stands alone, and such a character begins one.
        begins = alone.copy()
        begins[1:] |= alone[:-1] | space[:-1]
        begins[:1] = True
        lead = np.flatnonzero(kind == 4)
        lead = lead[self._stands_alone(data, lead)]
        begins[lead] = True
        begins[np.minimum(lead + 3, len(data) - 1)] = True
        keep = ~space
        begins &= keep
        starts_before = np.flatnonzero(begins)
        starts = np.flatnonzero(begins[keep])
        return data[keep], (starts, starts_before)

    def _stands_alone(self, data: np.ndarray, lead: np.ndarray) -> np.ndarray:
        first, second, third = data[lead], data[lead + 1], data[lead + 2]
        alone = (first == 0xE2) & (second == 0x80) & (third >= 0x90) & (third <= 0xA7)
        if self._cuts_chinese:
            alone |= (first > 0xE4) | ((first == 0xE4) & (second >= 0xB8))
        return alone

    def _lookup(self, data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Number of each distinct word in the dictionary, int64 [num_words]; new words are added."""
        keys = pack(data, starts, np.minimum(lengths, MAX_BYTES), MAX_COLUMNS)
        for word in np.flatnonzero(lengths > MAX_BYTES):
            # A number in place of the bytes, and a length that no short word has.
            content = data[starts[word] : starts[word] + lengths[word]].tobytes()
            number = self._long.setdefault(content, len(self._long))
            keys[:, word] = [number, *[0] * (MAX_COLUMNS - 2), _LONG]
        found = self._table.find(keys)
        new = np.flatnonzero(found == 0)
        if len(new):
            found[new] = np.arange(len(self._starts), len(self._starts) + len(new))
            self._table.add(keys[:, new])
            is_plain = are_plain(data, starts)[new] & (lengths[new] <= MAX_BYTES)
            self._append(data, starts[new], lengths[new], is_plain)
            self._num_long_bytes += int(lengths[new][lengths[new] > MAX_BYTES].sum())
        return found

    def _append(self, data: np.ndarray, starts: np.ndarray, lengths: np.ndarray, is_plain: np.ndarray) -> None:
        plain = np.flatnonzero(is_plain)
        ids, plain_counts = self._encode_plain(data, starts[plain], lengths[plain])
        others = np.append(np.flatnonzero(~is_plain), plain[plain_counts == 0])
        words = [data[starts[i] : starts[i] + lengths[i]].tobytes().decode("utf-8") for i in others]
        rows = [encoding.ids for encoding in self._backend.encode_batch_fast(words, add_special_tokens=False)]
        counts = np.zeros(len(starts), dtype=np.int64)
        counts[plain] = plain_counts
        counts[others] = [len(row) for row in rows]
        order = np.append(plain[plain_counts > 0], others)
        begins = np.zeros(len(starts), dtype=np.int64)
        begins[order] = len(self._ids) + np.cumsum(counts[order]) - counts[order]
        self._starts = np.concatenate([self._starts, begins])
        self._counts = np.concatenate([self._counts, counts])
        self._ids = np.concatenate([self._ids, ids, np.array(list(chain.from_iterable(rows)), dtype=np.uint32)])


def _distinct(data: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Which distinct word each word is, int [num_words], and the distinct words: bytes, starts and lengths."""
    offsets = np.append(starts, len(data))
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    array = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(starts), buffers).dictionary_encode()
    if not len(starts):
        return offsets[:0], (padded(data), offsets[:0], offsets[:0])
    # Not to_numpy(), which imports pandas: half a second in every process.
    codes = np.frombuffer(array.indices.buffers()[1], dtype=np.int32, count=len(starts))
    words = array.dictionary
    _, offsets_buffer, data_buffer = words.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64, count=len(words) + 1)
    distinct = np.frombuffer(data_buffer, dtype=np.uint8, count=offsets[-1])
    return codes, (padded(distinct), offsets[:-1], np.diff(offsets))
