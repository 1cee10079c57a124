"""Freed memory goes back to the system."""

import ctypes
import os
from pathlib import Path

import pytest

from bnb_ds.memory import return_freed_memory

_BLOCK_BYTES, _NUM_BLOCKS = 100_000, 2_000  # below the size from which glibc maps each block by itself


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_memory_between_live_blocks_is_returned() -> None:
    before = _resident_bytes()
    blocks = [bytearray(b"x") * _BLOCK_BYTES for _ in range(_NUM_BLOCKS)]
    size = _NUM_BLOCKS * _BLOCK_BYTES
    assert _resident_bytes() - before > 0.8 * size
    live = blocks[:: _NUM_BLOCKS // 20]
    del blocks
    return_freed_memory()
    assert _resident_bytes() - before < 0.3 * size
    assert all(len(block) == _BLOCK_BYTES for block in live)
