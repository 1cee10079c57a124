"""Time and peak memory of competing ways to do one thing, interleaved in one run."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch

Run = Callable[[], object]


def interleaved_seconds(ways: dict[str, Run], device: torch.device, repeats: int) -> dict[str, float]:
    """Median seconds of each way, all ways taking turns so that a slow spell of the machine meets every one.

    On a CPU these are CPU seconds of all threads of the process, which other programs on the machine hardly disturb;
    on a GPU, seconds of its own clock. One round before the first is not counted.
    """
    seconds_of = clock(device)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(repeats + 1):
        for name, run in ways.items():
            taken = seconds_of(run)
            if round_number:
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


def clock(device: torch.device) -> Callable[[Run], float]:
    """What measures the seconds of one run on a device."""
    return _cuda_seconds if device.type == "cuda" else _cpu_seconds


def peak_bytes(run: Run, device: torch.device) -> int:
    """Most bytes of tensors alive at once during a run, beyond those alive before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler reports its own start and stop
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def _cpu_seconds(run: Run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _cuda_seconds(run: Run) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3
