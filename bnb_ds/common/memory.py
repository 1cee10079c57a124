"""Settings of glibc's heap for long runs."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let new arrays reuse freed memory, large arrays too. With other C libraries than glibc this does nothing.

    By default glibc maps new pages for each large array and unmaps them when the array is freed. If all batches are
    alike, these new pages cost a tenth of the time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 25)  # the most that every glibc takes
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def return_freed_memory() -> None:
    """Give freed memory back to the system. With other C libraries than glibc this does nothing.

    glibc keeps freed blocks that lie between blocks in use. If every batch has another shape, these blocks fit no later
    array, and the process grows as long as it runs.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
