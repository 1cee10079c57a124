"""Memory of the C library's heap, on long runs."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let the next arrays reuse what has been freed, large ones too; nothing happens with another C library than glibc.

    glibc gives pages of its own to each large array and returns them when it is freed. Where batches are alike, fresh
    pages for every one cost a tenth of the time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 25)  # the most that every glibc takes
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def return_freed_memory() -> None:
    """Give what has been freed back to the system; nothing happens with another C library than glibc.

    glibc keeps freed blocks between live ones. Where batches have ever other shapes, the process would grow by what
    lies between, run as long as it may.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
