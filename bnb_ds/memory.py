"""Memory of the C library's heap, on long runs."""

from __future__ import annotations

import ctypes


def return_freed_memory() -> None:
    """Give what has been freed back to the system; nothing happens with another C library than glibc.

    glibc keeps freed blocks between live ones. Where batches have ever other shapes, the process would grow by what
    lies between, run as long as it may.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
