"""PubMed XML without the nine tenths of it that hold no title and no abstract.

Parsing is what reading PubMed costs, and tags are searched in bytes ten times faster than they are parsed. Of a record
that has the usual form this leaves what comes before the journal, the title and the abstract; of dates, authors,
headings, substances and references only the line ends stay, so that errors name the right line. A record of any other
form is left to the parser as it is: with comments or CDATA, which may hold what looks like a tag, or with elements in
what would be left out that are not closed there. The price is
that other faults in the parts left out go unnoticed, and in ``PubmedData`` all faults.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import BinaryIO

_RECORD = b"<PubmedArticle>"
_RECORD_END = b"</PubmedArticle>"
_JOURNAL = b"<Journal>"
_TITLE_END = b"</ArticleTitle>"
_ABSTRACT_END = b"</Abstract>"
_ARTICLE_END = b"</Article>"
_CITATION_END = b"</MedlineCitation>"
_DATA = b"<PubmedData>"
_BLOCK_BYTES = 1 << 20
_MOST_BYTES = 1 << 24  # without the end of a record in it: no PubMed file, the parser will say what is wrong


class SkimmedPubmed(io.RawIOBase):
    """A binary stream of PubMed XML that leaves all this out of another one."""

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
    """Whole records, with what may precede, follow or stand between them, without what holds no text."""
    head, *pieces = records.split(_RECORD)
    return b"".join([head, *(_RECORD + _essence(piece) for piece in pieces)])


def _essence(record: bytes) -> bytes:
    # `record` follows its own opening, up to the opening of the next one. Every search begins where the one before
    # ended, so that what is found in this order is this record's own.
    title = record.find(b"<ArticleTitle")
    title_end = record.find(_TITLE_END, title)
    article_end = record.find(_ARTICLE_END, title_end)
    citation_end = record.find(_CITATION_END, article_end)
    end = record.find(_RECORD_END, citation_end)
    if not 0 <= title < title_end < article_end < citation_end < end:
        return record
    dropped = []
    if (journal := record.find(_JOURNAL, 0, title)) >= 0:
        dropped.append((journal + len(_JOURNAL), record.find(b"</Journal>", journal, title)))
    text_end = title_end + len(_TITLE_END)
    if (abstract := record.find(b"<Abstract", text_end, article_end)) >= 0:
        dropped.append((text_end, abstract))
        text_end = record.rfind(_ABSTRACT_END, abstract, article_end) + len(_ABSTRACT_END)
        if text_end < abstract:  # not found
            return record
    dropped.append((text_end, article_end))
    dropped.append((article_end + len(_ARTICLE_END), citation_end))
    if any(end < begin or not _is_closed(record, begin, end) for begin, end in dropped):
        return record
    # Half of the whole, and too long to look into: ids and references.
    if (data := record.find(_DATA, citation_end, end)) >= 0:
        data_end = record.find(b"</PubmedData>", data, end)
        dropped.extend([(data + len(_DATA), data_end)] if data_end >= 0 else [])
    return _without(record, dropped)


def _is_closed(record: bytes, begin: int, end: int) -> bool:
    """Whether as many elements end in this range of a record as begin there."""
    return record.count(b"<", begin, end) == 2 * record.count(b"</", begin, end) + record.count(b"/>", begin, end)


def _without(record: bytes, dropped: Sequence[tuple[int, int]]) -> bytes:
    if b"!" in record and b"<!" in record:  # the first alone is ten times faster
        return record
    kept, place = [], 0
    for begin, end in dropped:
        kept += (record[place:begin], b"\n" * record.count(b"\n", begin, end))
        place = end
    return b"".join([*kept, record[place:]])
