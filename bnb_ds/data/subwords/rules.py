"""What the pieces of a vocabulary write, and where words begin: one object of rules for each family of tokenizers.

=============  ==========================================  ============================================
family         a piece                                     examples
=============  ==========================================  ============================================
`wordpiece`    ``##ing`` continues a word                  BERT, ELECTRA, DistilBERT, MiniLM
`byte-level`   holds bytes; ``Ġ`` is a space               RoBERTa, BART, ModernBERT
`metaspace`    ``▁`` is a space; ``<0xE4>`` may be a byte  SentencePiece: XLM-R (Unigram), BPE
=============  ==========================================  ============================================

The family is read off the tokenizer's own model and decoder, never off a name. Whole-word masking, the language model
of words, bad words and names of pieces all ask these rules.

In the last two families a piece may end inside a character; see `bnb_ds.data.subwords.characters`.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerFast

from bnb_ds.data.subwords.characters import SPACE_MARK, basic_words, healed, is_byte, is_edge, is_inner, spaced, word_of

Family = Literal["wordpiece", "byte-level", "metaspace"]
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, eq=False)
class WordStarts:
    """Where words begin in rows of token ids.

    Attributes:
        begins: bool [vocab_size], pieces that begin a word wherever they stand.
        stands: bool [vocab_size], pieces whose first character stands alone: a word begins there, but not behind a
            piece that is a space.
        closes: bool [vocab_size], pieces whose last character stands alone: a word begins behind them, but not inside a
            character.
        inner: bool [vocab_size], pieces that begin inside a character.
        spaces: bool [vocab_size], pieces that are a space.
    """

    begins: np.ndarray
    stands: np.ndarray
    closes: np.ndarray
    inner: np.ndarray
    spaces: np.ndarray

    @classmethod
    def at(cls, begins: np.ndarray) -> WordStarts:
        """Words begin at these pieces, bool [vocab_size], and nowhere else."""
        return cls(begins, *[np.zeros_like(begins)] * 4)

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """Whether a word begins at each token: bool [N] for ids [N], which may be of several texts.

        The first token of a text, or of a part of one, begins a word too; its place is the caller's to know.
        """
        begins = self.begins.take(tokens)
        if self._is_plain:
            return begins
        before, after = tokens[:-1], tokens[1:]
        edges = self.closes.take(before) & ~self.inner.take(after)
        edges |= self.stands.take(after) & ~self.spaces.take(before)
        begins[1:] |= edges
        return begins

    @functools.cached_property
    def _is_plain(self) -> bool:
        return not (self.closes.any() or self.stands.any())


class PieceRules(ABC):
    """What each id of a vocabulary writes.

    Args:
        pieces: the piece of each id; an empty one writes nothing.
        special_ids: ids that write nothing.

    Attributes:
        family: the family of the tokenizer.
        pieces: as given.
        texts: what each id adds to a text; None: nothing.
    """

    family: Family

    def __init__(self, pieces: Sequence[str], special_ids: Iterable[int]) -> None:
        self.pieces = list(pieces)
        special = set(special_ids)
        self.texts: list[str | None] = [
            None if number in special else self._text(piece) for number, piece in enumerate(self.pieces)
        ]

    @property
    @abstractmethod
    def writes_bytes(self) -> bool:
        """Whether every text can be written, if need be byte by byte."""

    @functools.cached_property
    @abstractmethod
    def starts(self) -> WordStarts:
        """Where words begin."""

    @abstractmethod
    def begins_word(self, token: int) -> bool:
        """Whether a space stands before what a token writes, although its text does not say so."""

    @abstractmethod
    def grow(self, open_text: str, token: int) -> tuple[list[str], str]:
        """Take in one more token of a text, for a language model of words.

        Words are those of BERT's basic tokeniser: white space divides them, and punctuation marks and Chinese
        characters are words of their own.

        Args:
            open_text: what was returned last; empty at the beginning.
            token: an id.

        Returns:
            The words that are whole now, and the text of the last word, which may go on; :func:`word_of` gives the
            word.
        """

    @abstractmethod
    def name(self, token: int) -> str:
        """A piece as people can read it."""

    @abstractmethod
    def _text(self, piece: str) -> str: ...


class WordPieceRules(PieceRules):
    """``##`` continues a word. The arguments are those of `PieceRules`."""

    family = "wordpiece"
    writes_bytes = False

    @functools.cached_property
    def starts(self) -> WordStarts:
        """Where words begin."""
        return WordStarts.at(np.array([not piece.startswith("##") for piece in self.pieces]))

    def begins_word(self, token: int) -> bool:
        """Whether a space stands before what a token writes."""
        return not _continues(self.pieces[token])

    def grow(self, open_text: str, token: int) -> tuple[list[str], str]:
        """Take in one more token of a text; see `PieceRules.grow`."""
        text = self.texts[token]
        if text is None:
            return [], open_text
        if not open_text:
            return [], text
        return ([], open_text + text) if _continues(self.pieces[token]) else ([open_text], text)

    def name(self, token: int) -> str:
        """A piece as people can read it."""
        return self.pieces[token]

    def _text(self, piece: str) -> str:
        return piece[2:] if _continues(piece) else piece


class _SpacedRules(PieceRules):
    """Pieces that hold their spaces, and perhaps bytes."""

    @functools.cached_property
    def starts(self) -> WordStarts:
        """Where words begin: behind spaces, and on both sides of marks and of characters of scripts without spaces."""
        texts = [text or "" for text in self.texts]
        return WordStarts(
            begins=np.array([text == "" or text[0].isspace() for text in texts]),
            stands=np.array([text != "" and is_edge(text[0]) for text in texts]),
            closes=np.array([text != " " and (text == "" or is_edge(text[-1], at_end=True)) for text in texts]),
            inner=np.array([text != "" and is_inner(text) for text in texts]),
            spaces=np.array([text == " " for text in texts]),
        )

    def begins_word(self, token: int) -> bool:
        """False: the text holds its space."""
        return False

    def grow(self, open_text: str, token: int) -> tuple[list[str], str]:
        """Take in one more token of a text; see `PieceRules.grow`."""
        text = healed(open_text + (self.texts[token] or ""))
        begins = [begin for begin, _ in basic_words(text)]
        if not begins:
            return [], ""
        words = [word_of(text[begin:end]) for begin, end in itertools.pairwise(begins)]
        return words, text[begins[-1] :]

    def name(self, token: int) -> str:
        """A piece as people can read it: ``▁`` stands for a space, ``<0xE4>`` for a byte."""
        text = self.texts[token]
        if text is None:
            return self.pieces[token]
        return "".join(f"<0x{ord(c) - 0xDC00:02X}>" if is_byte(c) else c for c in text.replace(" ", SPACE_MARK))


class ByteLevelRules(_SpacedRules):
    """Every character of a piece is one byte. The arguments are those of `PieceRules`."""

    family = "byte-level"
    writes_bytes = True

    def _text(self, piece: str) -> str:
        values = _byte_values()
        if all(character in values for character in piece):
            return bytes(values[character] for character in piece).decode("utf-8", "surrogateescape")
        return piece  # an added token, which stands for itself


class MetaspaceRules(_SpacedRules):
    """``▁`` is a space.

    Args:
        pieces, special_ids: as for `PieceRules`.
        has_bytes: ``<0xE4>`` is a byte.
    """

    family = "metaspace"

    def __init__(self, pieces: Sequence[str], special_ids: Iterable[int], *, has_bytes: bool = False) -> None:
        self._has_bytes = has_bytes
        super().__init__(pieces, special_ids)

    @property
    def writes_bytes(self) -> bool:
        """Whether every text can be written."""
        return self._has_bytes

    def _text(self, piece: str) -> str:
        if self._has_bytes and (match := _BYTE.fullmatch(piece)):
            return bytes([int(match[1], 16)]).decode("utf-8", "surrogateescape")
        return spaced(piece)


def family_of(state: Mapping[str, Any]) -> Family | None:
    """The family of a tokenizer from the content of its ``tokenizer.json``; None: none of those that are known."""
    model = state["model"]["type"]
    if model == "WordPiece":
        return "wordpiece" if state["model"].get("continuing_subword_prefix") == "##" else None
    decoders = _parts(state["decoder"], "decoders")
    if model not in ("BPE", "Unigram") or state["model"].get("end_of_word_suffix"):
        return None
    if any(decoder["type"] == "ByteLevel" for decoder in decoders):
        return "byte-level"
    for decoder in decoders:
        replaced = decoder.get("pattern", {}).get("String") if decoder["type"] == "Replace" else None
        if SPACE_MARK in (replaced, decoder.get("replacement") if decoder["type"] == "Metaspace" else None):
            return "metaspace"
    return None


def piece_rules(tokenizer: PreTrainedTokenizerFast, vocab_size: int | None = None) -> PieceRules:
    """The rules of a tokenizer.

    Args:
        tokenizer: of any family; one that is of none is read as WordPiece, whose pieces stand for themselves.
        vocab_size: of the model, which may have more ids than the tokenizer; None: that of the tokenizer.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    known = 1 + max(tokenizer.get_vocab().values())
    size = known if vocab_size is None else vocab_size
    pieces = [piece or "" for piece in tokenizer.convert_ids_to_tokens(list(range(min(size, known))))]
    pieces += [""] * (size - len(pieces))
    special = tokenizer.all_special_ids
    family = family_of(state)
    if family == "byte-level":
        return ByteLevelRules(pieces, special)
    if family == "metaspace":
        decoders = _parts(state["decoder"], "decoders")
        return MetaspaceRules(pieces, special, has_bytes=any(part["type"] == "ByteFallback" for part in decoders))
    return WordPieceRules(pieces, special)


def _continues(piece: str) -> bool:
    return piece.startswith("##") and len(piece) > 2


def _parts(section: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """The parts of a decoder, a normalizer or a pre-tokenizer, those of sequences too."""
    if section is None:
        return []
    return [part for one in section[name] for part in _parts(one, name)] if section["type"] == "Sequence" else [section]


@functools.cache
def _byte_values() -> dict[str, int]:
    """The byte for which each character of a byte-level piece stands (Radford et al., GPT-2, 2019)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    values = {chr(byte): byte for byte in shown}
    hidden = [byte for byte in range(0x100) if byte not in shown]
    return values | {chr(0x100 + number): byte for number, byte in enumerate(hidden)}
