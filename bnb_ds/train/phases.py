"""Measure the phases of the training loop: seconds and peak memory. The watchdog is told when a phase starts."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch

from bnb_ds.distributed.stragglers import Stragglers

_MIB = 2**20


class Phases:
    """Measures the phases of the loop between two calls of :meth:`read`.

    On a GPU, a phase of a step only queues its work. The time appears in the next phase that waits for the device, the
    last one of the step. ``bnb-ds bench engine`` measures the parts of a step with synchronised clocks.

    Args:
        device: device of this rank; its peak memory is recorded.
        on_enter: called at the start of each phase with its name and its step (None if unknown).
        stragglers: measures the phases in which ranks do not wait for each other, or None.
    """

    def __init__(
        self,
        device: torch.device,
        on_enter: Callable[[str, int | None], None] = lambda name, step: None,
        stragglers: Stragglers | None = None,
    ) -> None:
        self.device = device
        self.stragglers = stragglers
        #: what the loop does now: a phase of a step, and which part of it if it has several
        self.current, self.part, self.step = "start", "", 0
        self._on_enter = on_enter
        self._seconds: dict[str, float] = {}
        self._peak_bytes: dict[str, int] = {}

    def note(self, name: str, step: int | None = None) -> None:
        """Report that a long phase makes progress."""
        self._on_enter(name, step)

    @contextmanager
    def __call__(self, name: str, step: int | None = None, part: str = "") -> Iterator[None]:
        """Measure a block of code as a phase of a step (None if unknown); ``part`` says which one of several."""
        self._on_enter(name, step)
        self.current, self.part = name, part
        self.step = self.step if step is None else step
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        try:
            with self.stragglers.measure(name) if self.stragglers is not None else nullcontext():
                yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start
            self._peak_bytes[name] = max(self._peak_bytes.get(name, 0), peak_memory_bytes(self.device))

    def read(self) -> dict[str, float]:
        """``usage_seconds/PHASE`` and peak memory ``usage_mib/PHASE`` of each phase since the last call.

        The peak of a process is not known for each phase, so a CPU has only one, ``usage_mib/process``.
        """
        values = {f"usage_seconds/{name}": seconds for name, seconds in self._seconds.items()}
        if self.device.type == "cuda":
            values |= {f"usage_mib/{name}": peak / _MIB for name, peak in self._peak_bytes.items()}
        elif self._peak_bytes:
            values["usage_mib/process"] = max(self._peak_bytes.values()) / _MIB
        self._seconds, self._peak_bytes = {}, {}
        return values


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory in bytes: on a GPU of tensors since the last reset, otherwise of this process (resident) so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
