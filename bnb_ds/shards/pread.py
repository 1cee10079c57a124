"""Reading tokens of a shard with ``pread``, for loaders.

A mapped file that shrinks or whose disk fails kills the process without a word, and a page that is slow to arrive can
stop every thread of the interpreter. A read returns an error that can be reported, and lets the other threads go on.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bnb_ds.errors import DataError

# A process may open about a thousand files; shards beyond these are opened for each read.
_MAX_OPEN_FILES = 256

_in_flight: dict[int, Path] = {}


def files_being_read() -> list[str]:
    """The files that threads of this process are reading at this moment."""
    return sorted({str(path) for path in list(_in_flight.values())})


class ShardReader:
    """Reads spans of the token files of one split; safe to call from several threads.

    Args:
        paths: the ``.npy`` files.
        data_offsets: bytes before the first token of each.
        dtype: of a token.
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
            first_tokens: int64 [P], where in the file's tokens it begins.
            out: contiguous [N], of this reader's type.
            spans: int64 [P, 2], where in ``out`` each begins and ends.

        Raises:
            DataError: naming the file, which is missing, shorter than it was, or on a disk that fails.
        """
        buffer, itemsize, thread = memoryview(out).cast("B"), self.dtype.itemsize, threading.get_ident()
        preadv, descriptors, offsets = os.preadv, self._open, self._data_offsets
        columns = (shards, first_tokens * itemsize, *(spans * itemsize).T)
        shard = None
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
        """Open the file and read from it; it stays open unless too many are."""
        descriptor = self._opened(shard)
        try:
            self._read_rest(shard, descriptor, offset, out, len(out))
        finally:
            if self._open.get(shard) != descriptor:
                os.close(descriptor)

    def _read_rest(self, shard: int, descriptor: int, offset: int, out: memoryview, last_bytes: int) -> None:
        """What a read that gave ``last_bytes`` has left."""
        while out:
            if last_bytes == 0:
                raise DataError(
                    f"{self._paths[shard]}: ends at byte {offset}, before its documents do; restore it and start again"
                )
            last_bytes = os.preadv(descriptor, (out,), offset)
            out, offset = out[last_bytes:], offset + last_bytes

    def _opened(self, shard: int) -> int:
        """A descriptor, kept for the next read unless there are too many."""
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
