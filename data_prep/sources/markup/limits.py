"""A limit on the time that one page may take."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class TooSlowError(Exception):
    """A page used up its time."""


@contextmanager
def cpu_seconds(limit: float) -> Iterator[None]:
    """Let the block run for at most so many seconds of this process's CPU time, even inside one regular expression.

    It is a safety net: every pass over a page is linear, and no page should come near a limit. Outside the main thread
    the block runs without one, for signals arrive in the main thread alone.

    Raises:
        TooSlowError: the time is used up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise TooSlowError
