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

    def read(self, shard: int, first_token: int, out: memoryview) -> None:
        """Fill ``out`` (bytes of whole tokens) with the tokens of a shard from ``first_token`` on.

        Raises:
            DataError: naming the file, which is missing, shorter than it was, or on a disk that fails.
        """
        thread = threading.get_ident()
        _in_flight[thread] = self._paths[shard]
        try:
            self._read(shard, self._data_offsets[shard] + first_token * self.dtype.itemsize, out)
        except OSError as error:
            raise DataError(
                f"{self._paths[shard]}: cannot be read: {error.strerror or error}; restore it, then --resume auto"
            ) from error
        finally:
            del _in_flight[thread]

    def _read(self, shard: int, offset: int, out: memoryview) -> None:
        descriptor = self._open.get(shard)
        if descriptor is None:
            descriptor = self._opened(shard)
        keep = self._open.get(shard) == descriptor
        try:
            while out:
                num_bytes = os.preadv(descriptor, (out,), offset)
                if num_bytes == 0:
                    raise DataError(
                        f"{self._paths[shard]}: ends at byte {offset}, before its documents do; restore it, then"
                        " --resume auto"
                    )
                out, offset = out[num_bytes:], offset + num_bytes
        finally:
            if not keep:
                os.close(descriptor)

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
