"""Opening inputs, plain or compressed. A truncated file is always an error."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from bnb_ds.errors import DataError

COMPRESSIONS = (".gz", ".bz2", ".zst")

_BLOCK_BYTES = 1 << 18
_LINES_BYTES = 1 << 20


def kind(path: Path) -> str:
    """The suffix that tells a file's format: ``.jsonl`` of ``a.jsonl`` and of ``a.jsonl.gz``."""
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def open_input(path: str | os.PathLike[str]) -> BinaryIO:
    """The content of a file as a binary stream, decompressed by its suffix.

    Reading raises EOFError where a compressed file ends too early; use it inside :func:`reading_errors`.
    """
    path = Path(path)
    if path.suffix == ".gz":
        return _open_gzip(path)
    if path.suffix == ".bz2":
        return bz2.open(path, "rb")
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstdReader(path), _BLOCK_BYTES)
    return open(path, "rb")


def raw_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines with their ends: LF or CR LF, and CR alone in a file that begins with such lines."""
    data = file.readline(_LINES_BYTES)
    if data.endswith(b"\n") or b"\r" not in data:
        if data:
            yield data if data.endswith(b"\n") else data + file.readline()
        yield from file
        return
    while block := file.read(_LINES_BYTES):
        *lines, last = data.splitlines(keepends=True)
        yield from lines
        data = last + block  # the last line may go on, or its CR may be half of an end
    yield from data.splitlines(keepends=True)


@contextmanager
def reading_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what goes wrong while reading ``path`` into a DataError that names it and the way out."""
    try:
        yield
    except EOFError:
        raise DataError(f"{path}: truncated: the compressed data end too early; fetch the file again") from None
    except _inflate_errors() as error:
        raise DataError(f"{path}: damaged compressed data ({error}); fetch the file again") from None
    except OSError as error:
        if error.errno is None:  # a decompressor's opinion of the content
            reason = " ".join(str(error).split())
            raise DataError(f"{path}: damaged or not what its suffix says ({reason}); fetch it again") from None
        raise unreadable(path, error) from error


def unreadable(path: str | os.PathLike[str], error: OSError) -> DataError:
    """The error for a file that the operating system will not read."""
    reason = " ".join((error.strerror or str(error)).split())
    return DataError(f"{path}: cannot read: {reason}; check the file and its permissions")


def _open_gzip(path: Path) -> BinaryIO:
    return _gzip().open(path, "rb")


@cache
def _gzip() -> ModuleType:
    # Cached, because looking for a missing package takes longer than reading a small file.
    try:
        from isal import igzip  # optional: inflates at twice the speed
    except ImportError:
        return gzip
    return igzip


@cache
def _inflate_errors() -> tuple[type[Exception], ...]:
    try:
        from isal.igzip_lib import IsalError
    except ImportError:
        return (zlib.error,)
    return (zlib.error, IsalError)


class _ZstdReader(io.RawIOBase):
    """Frames back to back; unlike zstandard's own reader it notices that the last one is incomplete."""

    def __init__(self, path: Path) -> None:
        try:
            import zstandard
        except ImportError:
            raise DataError(
                f"{path}: reading .zst needs the package zstandard; pip install zstandard or decompress it"
            ) from None
        self._error = zstandard.ZstdError
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._file = open(path, "rb")  # noqa: SIM115 -- closed by close()
        self._frame = None
        self._input = b""
        self._output = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._output:
            self._input = self._input or self._file.read(_BLOCK_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise EOFError
                return 0
            self._frame = self._frame or self._new_frame()
            try:
                self._output = self._frame.decompress(self._input)
            except self._error as error:
                raise OSError(str(error)) from None
            self._input = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
