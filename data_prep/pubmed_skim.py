"""PubMed XML without the five lists that make half to four fifths of it and none of its text.

Parsing is what reading PubMed costs, and authors, headings, substances and references are searched in bytes ten times
faster than they are parsed. What is cut is replaced by its line ends, so that errors name the right line. The price: a
fault inside such a list is not noticed.
"""

from __future__ import annotations

import io
from typing import BinaryIO

_LISTS = (b"PubmedData", b"AuthorList", b"MeshHeadingList", b"ChemicalList", b"CommentsCorrectionsList")
_RECORD_END = b"</PubmedArticle>"
_BLOCK_BYTES = 1 << 20
_MOST_BYTES = 1 << 24  # without the end of a record in it: no PubMed file, the parser will say what is wrong


class SkimmedPubmed(io.RawIOBase):
    """A binary stream of PubMed XML that leaves these lists out of another one."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._input = b""  # after the last complete record
        self._output = memoryview(b"")
        self._at_end = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._output and not self._at_end:
            self._output = memoryview(self._next())
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _next(self) -> bytes:
        block = self._stream.read(_BLOCK_BYTES)
        data = self._input + block
        if not block:
            self._at_end = True
            self._input = b""
            return data  # what follows the last record, or a truncated one: left to the parser
        end = data.rfind(_RECORD_END)
        if end < 0:
            self._input = b"" if len(data) > _MOST_BYTES else data
            return b"" if self._input else data
        end += len(_RECORD_END)
        self._input = data[end:]
        return skim(data[:end])


def skim(records: bytes) -> bytes:
    """Whole records without the lists; a list that is not closed before its record ends stays."""
    for name in _LISTS:
        head, *pieces = records.split(b"<" + name)
        if pieces:
            closing = b"</" + name + b">"
            records = b"".join([head, *(_without(b"<" + name, piece, closing) for piece in pieces)])
    return records


def _without(opening: bytes, piece: bytes, closing: bytes) -> bytes:
    # `piece` follows an opening up to the next one of the same name.
    end = piece.find(closing)
    tag_end = piece.find(b">")
    is_this_tag = piece[:1] in (b">", b" ") and piece[tag_end - 1 : tag_end] != b"/"
    if end < 0 or not is_this_tag or _RECORD_END in piece[:end]:
        return opening + piece
    return b"\n" * piece.count(b"\n", 0, end) + piece[end + len(closing) :]
