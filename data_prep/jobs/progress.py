"""Progress of a run: a line that is redrawn on a terminal, a new line every 30 seconds elsewhere."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_NAMES = ("documents", "tokens", "skipped", "num_bytes")
_PLAIN_SECONDS = 30.0
_TERMINAL_SECONDS = 0.3


class Counters:
    """Counts that all worker processes add to."""

    def __init__(self) -> None:
        self._values = multiprocessing.get_context("fork").Array("q", len(_NAMES))

    def add(self, **counts: int) -> None:
        """Add to the counts of these names."""
        with self._values.get_lock():
            for name, count in counts.items():
                self._values[_NAMES.index(name)] += count

    def read(self) -> dict[str, int]:
        """All counts."""
        with self._values.get_lock():
            return dict(zip(_NAMES, self._values[:], strict=True))


class Progress:
    """Shows the counters of a run."""

    def __init__(self, *, silent: bool = False, stream: TextIO | None = None) -> None:
        self.counters = Counters()
        self._silent = silent
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._phase = ""
        self._last_shown = 0.0

    def say(self, line: str) -> None:
        """Print a line of its own."""
        if not self._silent:
            print(f"\r\x1b[K{line}" if self._is_terminal else line, file=self._stream, flush=True)

    @contextmanager
    def phase(self, name: str, num_bytes: int) -> Iterator[None]:
        """Begin a phase of the work, over that many input bytes."""
        self._phase, self._total_bytes = name, num_bytes
        self._start, self._before = time.monotonic(), self.counters.read()
        self._last_shown = self._start
        try:
            yield
        finally:
            if self._is_terminal and not self._silent:
                print("\r\x1b[K", end="", file=self._stream, flush=True)

    def refresh(self) -> None:
        """Show the counters if they were last shown some time ago."""
        now = time.monotonic()
        if self._silent or now - self._last_shown < (_TERMINAL_SECONDS if self._is_terminal else _PLAIN_SECONDS):
            return
        self._last_shown = now
        line = self.line(now - self._start)
        print(
            f"\r\x1b[K{line}" if self._is_terminal else line,
            end="" if self._is_terminal else "\n",
            flush=True,
            file=self._stream,
        )

    def line(self, seconds: float) -> str:
        """The progress line after so many seconds of the phase."""
        now = self.counters.read()
        counts = {name: now[name] - self._before[name] for name in _NAMES}
        left = max(self._total_bytes - counts["num_bytes"], 0)
        rate = counts["tokens"] / seconds if seconds else 0.0
        tokens = f"{counts['tokens']:,} tokens, {rate / 1e6:.2f} Mtok/s, " if counts["tokens"] else ""
        return (
            f"{self._phase}: {counts['documents']:,} documents, {tokens}{counts['skipped']:,} skipped, "
            f"{left / 2**20:,.0f} MiB left"
        )
