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
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute  # else imported by every worker, at its first batch
from tokenizers import Tokenizer

# The dictionary is emptied when it has grown past this: memory stays flat over any corpus, in any script.
_MAX_WORDS = 1 << 20
_MAX_WORD_BYTES = 1 << 26
_WORDS_PER_CALL = 4096

_IS_SPACE = np.zeros(256, dtype=bool)
_IS_SPACE[[ord(character) for character in " \t\n\r"]] = True
_IS_PUNCTUATION = np.zeros(256, dtype=bool)
_IS_PUNCTUATION[[ord(character) for character in string.punctuation]] = True
# One gather answers all: 1 space, 2 punctuation, 4 first byte of a character that may have to stand alone.
_CLASS = _IS_SPACE * np.uint8(1) + _IS_PUNCTUATION * np.uint8(2)
_CLASS[0xE2] = 4
_CLASS[0xE4:0xEA] = 4


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
        vocabulary = state["model"]["vocab"]
        prefix = state["model"]["continuing_subword_prefix"]
        self._continues = np.zeros(max(vocabulary.values()) + 1, dtype=bool)
        self._continues[[index for token, index in vocabulary.items() if token.startswith(prefix)]] = True
        self._cuts_chinese = bool(state["normalizer"]["handle_chinese_chars"])
        self._clear()

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of all texts back to back, and where each begins.

        Returns:
            uint32 [num_tokens] and int64 [len(texts) + 1].
        """
        encoded = [text.encode("utf-8") for text in texts]
        ends = np.cumsum([len(data) + 1 for data in encoded], dtype=np.int64)
        data, starts = self._cut(np.frombuffer(b"\n".join([*encoded, b""]), dtype=np.uint8))
        codes, words = _distinct(data, starts[0])
        index = self._lookup(words)[codes]
        counts = self._counts[index]
        token_ends = np.cumsum(counts)
        num_tokens = int(token_ends[-1]) if len(token_ends) else 0
        # Token t of the output is token (t - first output token of its word) of the word's own ids.
        shift = self._starts[index] - (token_ends - counts)
        ids = self._ids[np.repeat(shift, counts) + np.arange(num_tokens)]
        words_before = np.searchsorted(starts[1], ends)
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        offsets[1:] = np.concatenate([[0], token_ends])[words_before]
        if len(self._index) > _MAX_WORDS or self._num_word_bytes > _MAX_WORD_BYTES:
            self._clear()
        return ids, offsets

    def _clear(self) -> None:
        self._index: dict[bytes, int] = {}
        self._num_word_bytes = 0
        self._ids = np.zeros(0, dtype=np.uint32)  # of all words, back to back
        self._starts = np.zeros(0, dtype=np.int64)  # of each word in _ids
        self._counts = np.zeros(0, dtype=np.int64)

    def _cut(self, data: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """The bytes without spaces, where each word starts in them, and where it started before.

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

    def _lookup(self, words: list[bytes]) -> np.ndarray:
        """Index of each word in the dictionary, int64 [len(words)]; new words are added."""
        get = self._index.get
        found = np.array([get(word, -1) for word in words], dtype=np.int64)
        new = np.flatnonzero(found < 0)
        if len(new):
            new_words = [words[i] for i in new]
            first = len(self._starts)
            found[new] = np.arange(first, first + len(new))
            self._index.update(zip(new_words, range(first, first + len(new)), strict=True))
            self._num_word_bytes += sum(map(len, new_words))
            self._append(new_words)
        return found

    def _append(self, words: list[bytes]) -> None:
        # A run of ASCII letters and digits is one word to BERT too, so its ids can be told apart in a longer text by
        # the tokens that do not continue a word: one call for thousands of words.
        plain = np.array([word.isalnum() for word in words])
        counts = np.zeros(len(words), dtype=np.int64)
        pieces, order = [self._ids], []
        for chunk in np.array_split(np.flatnonzero(plain), 1 + len(words) // _WORDS_PER_CALL):
            ids = self._encode([b" ".join([words[i] for i in chunk]).decode("ascii")])[0]
            counts[chunk] = np.diff(np.append(np.flatnonzero(~self._continues[ids]), len(ids)))
            pieces.append(ids)
            order.append(chunk)
        others = np.flatnonzero(~plain)
        rows = self._encode([words[i].decode("utf-8") for i in others])
        counts[others] = [len(row) for row in rows]
        order = np.concatenate([*order, others])
        starts = np.zeros(len(words), dtype=np.int64)
        starts[order] = len(self._ids) + np.cumsum(counts[order]) - counts[order]
        self._starts = np.concatenate([self._starts, starts])
        self._counts = np.concatenate([self._counts, counts])
        self._ids = np.concatenate([*pieces, *rows])

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]


def _distinct(data: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, list[bytes]]:
    """Which distinct word each word is, int [num_words], and the distinct words."""
    offsets = np.append(starts, len(data))
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    array = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(starts), buffers).dictionary_encode()
    # Not to_numpy(), which imports pandas: half a second in every process.
    codes = np.frombuffer(array.indices.buffers()[1], dtype=np.int32, count=len(starts)) if len(starts) else offsets[:0]
    return codes, array.dictionary.to_pylist()
