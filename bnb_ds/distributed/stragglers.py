"""Name ranks that are slower than the others, and the phase that they are slow in.

In most phases the ranks wait for each other, and then a slow rank is the one that does not wait. So only the phases
without a collective operation are compared: reading samples, and the forward pass. (ZeRO stage 3 gathers weights in its
forward pass; a slow rank then slows all of them down, and shows less.)
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from bnb_ds.distributed import ranks

DATA, FORWARD = "data", "forward"
#: a rank is not named for a phase that costs the others less than this share of a step
_SMALLEST_SHARE = 0.1


@dataclass(frozen=True)
class Slow:
    """A rank that is slower than the others in a phase.

    Attributes:
        rank: its number.
        phase: what it is slow in.
        seconds: of this rank.
        others: median of the other ranks, in seconds.
    """

    rank: int
    phase: str
    seconds: float
    others: float


def find_slow(seconds: Sequence[dict[str, float]], whole: float, factor: float) -> list[Slow]:
    """The slow ranks, the one that costs most first.

    Args:
        seconds: of each rank, phase -> seconds in the same steps.
        whole: seconds that these steps took.
        factor: a rank is slow if it takes more than this many times the median of the others.
    """
    found = []
    for phase in sorted({phase for row in seconds for phase in row}):
        values = [row.get(phase, 0.0) for row in seconds]
        for rank, value in enumerate(values):
            others = statistics.median(values[:rank] + values[rank + 1 :])
            if value > factor * others and value - others > _SMALLEST_SHARE * whole:
                found.append(Slow(rank, phase, value, others))
    return sorted(found, key=lambda slow: slow.others - slow.seconds)


class Stragglers:
    """Measures this rank, and compares it with the others now and then. With one rank it does nothing.

    Args:
        device: of this rank. On a GPU the time of the forward pass is that of its kernels.
        check_steps: steps between two comparisons; 0 for never.
        factor: as in `find_slow`.
    """

    def __init__(self, device: torch.device, check_steps: int, factor: float) -> None:
        self._device = device
        self._check_steps = check_steps if ranks.world_size() > 1 else 0
        self._factor = factor
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._start_again()

    def _start_again(self) -> None:
        self._seconds = {DATA: 0.0, FORWARD: 0.0}
        self._whole = 0.0
        self._steps = 0

    def loaded(self, seconds: float) -> None:
        """Note how long this rank took to have the samples of a step ready, without waiting for others."""
        self._seconds[DATA] += seconds

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Measure a block of code, if it is the forward pass."""
        if phase != FORWARD or not self._check_steps:
            yield
        elif self._device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            start_seconds = time.perf_counter()
            yield
            self._seconds[FORWARD] += time.perf_counter() - start_seconds

    def step_done(self, step: int, seconds: float) -> list[str]:
        """Note the end of a step, which took ``seconds``. Every rank calls this after each step.

        Returns:
            Lines that name the slow ranks; the same on every rank.
        """
        if not self._check_steps:
            return []
        # The work of a step is done when the step is, so no event is waited for.
        self._seconds[FORWARD] += sum(start.elapsed_time(end) for start, end in self._events) / 1000
        self._events.clear()
        self._steps += 1
        self._whole += seconds
        if step % self._check_steps:
            return []
        rows = ranks.gather((socket.gethostname(), self._seconds))
        slow_ranks = find_slow([row for _, row in rows], self._whole, self._factor)
        lines = [self._line(step, slow, rows[slow.rank][0]) for slow in slow_ranks]
        self._start_again()
        return lines

    def _line(self, step: int, slow: Slow, host: str) -> str:
        own, others, whole = (seconds / self._steps for seconds in (slow.seconds, slow.others, self._whole))
        return (
            f"slow rank    step {step}: rank {slow.rank} on {host} takes {own:.3g} s a step for {slow.phase}, the"
            f" others {others:.3g} s; a step takes {whole:.3g} s"
        )
