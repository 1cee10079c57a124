"""What the loop is doing: seconds and peak memory of each phase, and news for the watchdog."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_MIB = 2**20


class Phases:
    """Clocks the phases of the loop between two readings.

    On a GPU, work is only queued when a phase of a step ends: the time then appears in the phase that next waits for
    the device, which is the last of a step. ``bnb-ds bench engine`` takes a step apart with synchronised clocks.

    Args:
        device: of this rank; its peak memory is recorded.
        on_enter: told the name of each phase that begins, and the step where that is known.
    """

    def __init__(
        self, device: torch.device, on_enter: Callable[[str, int | None], None] = lambda name, step: None
    ) -> None:
        self.device = device
        self._on_enter = on_enter
        self._seconds: dict[str, float] = {}
        self._peak_bytes: dict[str, int] = {}

    def note(self, name: str, step: int | None = None) -> None:
        """Tell the watchdog that a long phase makes progress."""
        self._on_enter(name, step)

    @contextmanager
    def __call__(self, name: str, step: int | None = None) -> Iterator[None]:
        """Clock a block; ``step`` is the one it belongs to, where the caller knows it."""
        self._on_enter(name, step)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start
            self._peak_bytes[name] = max(self._peak_bytes.get(name, 0), peak_memory_bytes(self.device))

    def read(self) -> dict[str, float]:
        """``time/PHASE`` in seconds since the last reading and ``memory/PHASE`` in MiB at its peak."""
        values = {f"time/{name}_seconds": seconds for name, seconds in self._seconds.items()}
        values |= {f"memory/{name}_mib": peak / _MIB for name, peak in self._peak_bytes.items()}
        self._seconds, self._peak_bytes = {}, {}
        return values


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory in use: of the GPU's tensors since it was last reset, or of this process (resident) so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
