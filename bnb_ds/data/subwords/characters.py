"""Characters, whole or in bytes: which of them are parts of words.

Pieces of byte-level vocabularies may end inside a character. Their texts then hold lone surrogates in the place of the
bytes, as Python's ``surrogateescape`` writes them; :func:`healed` joins them.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence

#: a space in the pieces of SentencePiece
SPACE_MARK = "▁"
_CHINESE = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))
#: scripts that put no spaces between words, beside Chinese: Thai, Lao, Burmese, Khmer, kana
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF))
#: first bytes of characters that mostly stand alone: general punctuation and symbols, kana and Chinese, pictures
_LONE_FIRST_BYTES = frozenset((0xE2, *range(0xE3, 0xEA), 0xF0))


def healed(text: str) -> str:
    """A text in which bytes that make characters together have become them."""
    if text.isascii() or not any(map(is_byte, text)):
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def split_at_open_bytes(text: str) -> tuple[str, str]:
    """A :func:`healed` text, and apart from it the bytes at its end that begin a character and may yet become one.

    Bytes elsewhere make no character, and are written as U+FFFD.
    """
    end = len(text)
    for size in range(1, 1 + min(3, end)):
        if not is_byte(text[-size]):
            break
        first = ord(text[-size]) - 0xDC00
        if first >= 0xC0:
            needed = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
            end -= size if size < needed and 0xC2 <= first <= 0xF4 else 0
            break
    return "".join("\ufffd" if is_byte(character) else character for character in text[:end]), text[end:]


def spaced(text: str) -> str:
    """A text or piece with spaces in the place of ``▁``."""
    return text.replace(SPACE_MARK, " ")


def word_of(open_text: str) -> str:
    """The word of an open text of :meth:`PieceRules.grow`; bytes that make no character become U+FFFD."""
    if open_text.isascii():
        return open_text.strip()
    return "".join("\ufffd" if is_byte(character) else character for character in open_text).strip()


def is_letter(character: str) -> bool:
    """Whether a character is part of a run. Marks, symbols, spaces and Chinese characters stand alone."""
    if unicodedata.category(character)[0] in "PSZC":
        return False
    return not _is_in(_CHINESE, character)


def is_punctuation(character: str) -> bool:
    """Whether BERT's basic tokeniser takes a character for punctuation: ASCII signs and Unicode punctuation."""
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def basic_words(text: str) -> list[tuple[int, int]]:
    """Where the words of BERT's basic tokeniser begin and end."""
    words: list[tuple[int, int]] = []
    is_open = False
    for place, character in enumerate(text):
        if character.isspace():
            is_open = False
        elif is_punctuation(character) or _is_in(_CHINESE, character):
            words.append((place, place + 1))
            is_open = False
        elif is_open:
            words[-1] = (words[-1][0], place + 1)
        else:
            words.append((place, place + 1))
            is_open = True
    return words


def is_byte(character: str) -> bool:
    return "\udc80" <= character <= "\udcff"


def is_inner(text: str) -> bool:
    """Whether a text begins inside a character."""
    return is_byte(text[0]) and ord(text[0]) - 0xDC00 < 0xC0


def is_edge(character: str, *, at_end: bool = False) -> bool:
    """Whether a word ends at a character; of a byte, what most characters that begin with it are."""
    if is_byte(character):
        return not at_end and ord(character) - 0xDC00 in _LONE_FIRST_BYTES
    return character.isspace() or not is_letter(character) or _is_in(_UNSPACED, character)


def _is_in(ranges: Sequence[tuple[int, int]], character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in ranges)
