"""The figures of a check: each is a line at once, a line of a JSON file, and a row of the table at the end."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bnb_ds.common.markdown import markdown_table

if TYPE_CHECKING:
    import torch

_MIB = 2**20
OK, FAILED, MISSED, SKIPPED, MEASURED = "ok", "FAILED", "below its goal", "skipped", ""


@dataclass(frozen=True)
class Figure:
    """A row of the table.

    Attributes:
        part: the part of the check.
        name: what was measured.
        value: a number with its unit, or a text.
        verdict: one of `OK`, `FAILED`, `MISSED`, `SKIPPED`, `MEASURED`.
        note: what else is known.
    """

    part: str
    name: str
    value: str
    verdict: str = MEASURED
    note: str = ""


class Figures:
    """Collects the figures of one part.

    Args:
        part: its name.
        path: file of JSON lines; parts are processes of their own, and all add to it.
        device: of the check.
    """

    def __init__(self, part: str, path: Path, device: torch.device):
        self.part, self._path, self.device = part, path, device

    def put(self, name: str, value: object, verdict: str = MEASURED, note: str = "") -> None:
        """Note a figure."""
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        figure = Figure(self.part, name, text, verdict, note)
        print(f"  {name:<58} {text}  {verdict}  {note}", flush=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(figure)) + "\n")

    def check(self, name: str, error: float, tolerance: float, note: str = "") -> None:
        """Note an error, and whether it is within its tolerance. A NaN is not."""
        self.put(name, error, OK if error <= tolerance else FAILED, note or f"at most {tolerance:g}")

    def goal(self, name: str, value: float, goal: float, note: str = "") -> None:
        """Note a figure that should be at least ``goal``."""
        self.put(name, value, OK if value >= goal else MISSED, f"goal {goal:g}; {note}".rstrip("; "))

    def compare(self, name: str, got: torch.Tensor, exact: torch.Tensor, tolerance: float) -> None:
        """Note the relative distance (2-norm) of a result from the exact one."""
        exact = exact.detach().cpu().double()
        distance = (got.detach().cpu().double() - exact).norm() / exact.norm().clamp(min=1e-30)
        self.check(name, float(distance), tolerance)

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)

    def milliseconds(self, run: Callable[[], object], repeats: int = 5, warm: int = 2) -> tuple[float, float]:
        """Median milliseconds until the device is done, and until the host has queued the last launch."""
        for _ in range(warm):
            run()
        walls, hosts = [], []
        for _ in range(repeats):
            self.synchronise()
            begin = time.perf_counter()
            run()
            queued = time.perf_counter()
            self.synchronise()
            walls.append(time.perf_counter() - begin)
            hosts.append(queued - begin)
        return 1e3 * statistics.median(walls), 1e3 * statistics.median(hosts)

    def peak_mib(self, run: Callable[[], object]) -> float:
        """MiB of tensors alive at once during a run, beyond those alive before; 0 without a GPU."""
        if self.device.type != "cuda":
            run()
            return 0.0
        import torch

        self.synchronise()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        self.synchronise()
        return (torch.cuda.max_memory_allocated(self.device) - before) / _MIB

    def kernels(self, run: Callable[[], object], top: int = 12) -> None:
        """Print the kernels that take most of a run's time, and note how many are launched."""
        if self.device.type != "cuda":
            return
        import torch
        from torch.profiler import ProfilerActivity, profile

        run()
        self.synchronise()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            run()
            self.synchronise()
        rows = [event for event in profiled.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
        total = sum(event.self_device_time_total for event in rows) or 1
        self.put("kernels launched", sum(event.count for event in rows), note=f"{total / 1e3:.2f} ms of device time")
        for event in sorted(rows, key=lambda event: -event.self_device_time_total)[:top]:
            share, millis = event.self_device_time_total / total, event.self_device_time_total / 1e3
            print(f"    {millis:8.3f} ms {share:6.1%} x{event.count:<5} {event.key[:90]}")


def read_figures(path: Path) -> list[Figure]:
    """The figures that all parts have noted."""
    if not path.exists():
        return []
    return [Figure(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def table(figures: list[Figure]) -> str:
    """A Markdown table of all figures."""
    names = ("part", "what", "value", "verdict", "note")
    return markdown_table(names, [tuple(asdict(figure).values()) for figure in figures])
