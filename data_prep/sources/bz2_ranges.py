"""MediaWiki dumps of several bz2 streams, read in ranges of streams by workers that know nothing of each other.

Wikipedia's multistream dumps begin every stream with a page. Parallel compressors such as pbzip2 end a stream every
900,000 bytes, in the middle of a page or of a tag. So ranges follow pages: a page belongs to the range that holds the
first byte of its opening tag, and the worker of that range reads on past its end to finish the page.
"""

from __future__ import annotations

import bz2
import io
import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.sources.opening import reading_errors
from data_prep.sources.units import SourceFile, Unit

_STREAM_START = re.compile(rb"BZh[1-9]1AY&SY")  # 80 bits: no accident in a dump of any size
_PAGE = re.compile(rb"<page[\s>]")  # markup in a text is escaped, so that this is a tag wherever it stands
_PAGE_BYTES = 6
_ROOT_END = re.compile(rb"</mediawiki\s*>\s*\Z")
_ROOT_END_BYTES = 1 << 10  # with the white space around it
_BLOCK_BYTES = 1 << 18
_MOST_BYTES = 1 << 20  # decompressed at once: a short input can have a long output


def stream_ranges(file: SourceFile, index: int, range_bytes: int) -> list[Unit]:
    """A .bz2 file in ranges of whole streams, each of at least so many bytes; one of a single stream stays whole.

    Raises:
        DataError: the file cannot be read.
    """
    num_bytes = file.num_bytes()
    with reading_errors(file.path):
        starts = [0]
        for wanted in range(range_bytes, num_bytes, range_bytes):
            found = _next_stream(file.path, max(wanted, starts[-1] + 1))
            if found is None:
                break
            if found > starts[-1]:
                starts.append(found)
    if len(starts) == 1:
        return [Unit(index, num_bytes)]
    return [Unit(index, end - begin, begin, end) for begin, end in zip(starts, [*starts[1:], num_bytes], strict=True)]


def open_range(file: SourceFile, unit: Unit) -> io.BufferedReader:
    """The pages that begin in a range, as an XML document of their own.

    Reading raises EOFError where the file is truncated and OSError where it is damaged; use it inside
    :func:`~data_prep.sources.opening.reading_errors`.
    """
    return io.BufferedReader(_Pieces(_document(file.path, unit.begin, unit.end)), _BLOCK_BYTES)


def _next_stream(path: Path, position: int) -> int | None:
    """Where the first stream at or after a position begins."""
    overlap = 9
    with open(path, "rb") as file:
        file.seek(position)
        window = b""
        while block := file.read(_BLOCK_BYTES):
            window = window[-overlap:] + block
            if match := _STREAM_START.search(window):
                return file.tell() - len(window) + match.start()
    return None


def _document(path: Path, begin: int, end: int) -> Iterator[bytes]:
    """What the first range holds up to its last page, or the pages of another range below a root of their own."""
    is_begun = begin == 0
    if not is_begun:
        yield b"<mediawiki>"
    pending, place = b"", 0  # decompressed bytes that are not decided about, and where they begin
    edge = None  # where the first stream of the next range begins, in decompressed bytes
    for start, chunk in _decompressed(path, begin):
        if edge is None and start >= end:
            edge = place + len(pending)
        pending += chunk
        kept = 0 if edge is None else _PAGE_BYTES - 1  # what may be the beginning of a tag
        if not is_begun:
            match = _PAGE.search(pending)
            is_begun = match is not None and (edge is None or place + match.start() < edge)
            if is_begun:
                pending, place = pending[match.start() :], place + match.start()
            elif edge is not None and (match or place + len(pending) >= edge + _PAGE_BYTES - 1):
                yield b"</mediawiki>"  # no page begins in this range
                return
            else:
                kept = _ROOT_END_BYTES
        if is_begun and edge is not None and (match := _PAGE.search(pending, max(edge - place, 0))):
            yield pending[: match.start()] + b"</mediawiki>"  # here begins the first page of the next range
            return
        cut = max(len(pending) - kept, 0)
        if is_begun:
            yield pending[:cut]
        pending, place = pending[cut:], place + cut
    if is_begun:
        yield pending
    elif _ROOT_END.search(pending):  # else the file is truncated, which the parser will say
        yield b"</mediawiki>"


def _decompressed(path: Path, begin: int) -> Iterator[tuple[int, bytes]]:
    """The content of a file from the stream at ``begin`` on, in pieces, each with the place where its stream begins.

    Raises:
        EOFError: the last stream is not complete.
        OSError: a stream is damaged.
    """
    with open(path, "rb") as file:
        file.seek(begin)
        decompressor = bz2.BZ2Decompressor()
        data = b""
        while True:
            if decompressor.eof:
                data = decompressor.unused_data or file.read(_BLOCK_BYTES)
                if not data:
                    return
                begin = file.tell() - len(data)
                decompressor = bz2.BZ2Decompressor()
            elif decompressor.needs_input and not data:
                data = file.read(_BLOCK_BYTES)
                if not data:
                    raise EOFError
            chunk = decompressor.decompress(data, _MOST_BYTES)
            data = b""
            if chunk:
                yield begin, chunk


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._output:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._output = memoryview(piece)
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count
