"""Freed memory goes back to the system."""

import ctypes
import subprocess
import sys

import pytest

# This runs in a new process, because the heap of a long-running one has free space for these blocks and would not grow.
_PROGRAM = """
import os
from pathlib import Path

from bnb_ds.common.memory import return_freed_memory


def resident_bytes():
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


before = resident_bytes()
blocks = [bytearray(b"x") * 100_000 for _ in range(2_000)]  # below the size from which glibc maps each block by itself
print(resident_bytes() - before)
live = blocks[::100]
del blocks
return_freed_memory()
print(resident_bytes() - before, all(len(block) == 100_000 for block in live))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_memory_between_live_blocks_is_returned() -> None:
    run = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    grown, left, whole = run.stdout.split()
    assert int(grown) > 0.8 * 200_000_000
    assert int(left) < 0.3 * 200_000_000
    assert whole == "True"
