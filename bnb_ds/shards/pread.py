"""Reads tokens of shards with ``pread``, for loaders.

With memory-mapped files, a file that shrinks or a disk that fails kills the process without a message, and a page that
arrives late can block every thread of the interpreter. ``pread`` returns an error that can be reported, and other
threads go on during the read.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bnb_ds.errors import DataError

# A process may open about a thousand files. Further shards are opened anew for each read.
_MAX_OPEN_FILES = 256

_in_flight: dict[int, Path] = {}


def files_being_read() -> list[str]:
    """The files that the threads of this process are reading right now."""
    return sorted({str(path) for path in list(_in_flight.values())})


class ShardReader:
    """Reads spans of the token files of one split. Several threads may call it at the same time.

    Args:
        paths: the ``.npy`` files.
        data_offsets: bytes before the first token of each file.
        dtype: type of the tokens.
    """

    def __init__(self, paths: Iterable[Path], data_offsets: Iterable[int], dtype: np.dtype) -> None:
        self._paths = list(paths)
        self._data_offsets = list(data_offsets)
        self.dtype = dtype
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._open)

    def read(self, shards: np.ndarray, first_tokens: np.ndarray, out: np.ndarray, spans: np.ndarray) -> None:
        """Copy spans of tokens.

        Args:
            shards: int64 [P], the file of each span.
            first_tokens: int64 [P], index of each span's first token in its file.
            out: contiguous [N], of this reader's dtype.
            spans: int64 [P, 2], where each span begins and ends in ``out``.

        Raises:
            DataError: the file is missing, has become shorter, or is on a disk that fails; the message names it.
        """
        buffer, itemsize, thread = out.data.cast("B"), self.dtype.itemsize, threading.get_ident()
        preadv, descriptors, offsets = os.preadv, self._open, self._data_offsets
        columns = (shards, first_tokens * itemsize, *(spans * itemsize).T)
        shard = -1
        try:
            for next_shard, first_byte, begin, end in zip(*(column.tolist() for column in columns), strict=True):
                if next_shard != shard:
                    shard = next_shard
                    _in_flight[thread] = self._paths[shard]
                offset = offsets[shard] + first_byte
                descriptor = descriptors.get(shard)
                if descriptor is None:
                    self._read_new(shard, offset, buffer[begin:end])
                elif (num_bytes := preadv(descriptor, (buffer[begin:end],), offset)) != end - begin:
                    self._read_rest(shard, descriptor, offset + num_bytes, buffer[begin + num_bytes : end], num_bytes)
        except OSError as error:
            raise DataError(
                f"{self._paths[shard]}: cannot be read: {error.strerror or error}; restore it and start again"
            ) from error
        finally:
            _in_flight.pop(thread, None)

    def _read_new(self, shard: int, offset: int, out: memoryview) -> None:
        """Open the file and read from it. It stays open unless too many files are open."""
        descriptor = self._opened(shard)
        try:
            self._read_rest(shard, descriptor, offset, out, len(out))
        finally:
            if self._open.get(shard) != descriptor:
                os.close(descriptor)

    def _read_rest(self, shard: int, descriptor: int, offset: int, out: memoryview, last_bytes: int) -> None:
        """Read what the previous read, of ``last_bytes`` bytes, has not filled."""
        while out:
            if last_bytes == 0:
                raise DataError(
                    f"{self._paths[shard]}: ends at byte {offset}, before the end of its documents; restore it and"
                    " start again"
                )
            last_bytes = os.preadv(descriptor, (out,), offset)
            out, offset = out[last_bytes:], offset + last_bytes

    def _opened(self, shard: int) -> int:
        """The file's descriptor. It is kept for the next read unless too many files are open."""
        with self._lock:
            if shard in self._open:
                return self._open[shard]
            descriptor = os.open(self._paths[shard], os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) < _MAX_OPEN_FILES:
                self._open[shard] = descriptor
            return descriptor


def _close_all(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
