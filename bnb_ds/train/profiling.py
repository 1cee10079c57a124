"""``--profile-steps FIRST:LAST``: write a trace of some steps, to be opened in Perfetto or chrome://tracing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from bnb_ds.distributed import ranks
from bnb_ds.errors import ConfigError


class StepProfiler:
    """Records a range of steps of rank 0, and writes one trace.

    Args:
        first: first step of the range.
        last: last step of the range; with ``first`` 0 and ``last`` -1 nothing is recorded.
        directory: directory for the trace.
        say: prints a line with the path of the trace.
    """

    def __init__(self, first: int, last: int, directory: Path, say: Callable[[str], None]) -> None:
        self._first, self._last = first, last
        self._directory = directory
        self._say = say
        self._profile: profile | None = None

    @contextmanager
    def __call__(self, step: int) -> Iterator[None]:
        """Record a step if it is in the range."""
        inside = self._first <= step <= self._last and ranks.is_main()
        if inside and self._profile is None:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # keeps the profiler from logging its start and stop
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, profile_memory=True)
            self._profile.start()
        yield
        if step == self._last:
            self.close()

    def close(self) -> None:
        """Write the trace, if a recording is open. If the run ends early, the trace has fewer steps."""
        if self._profile is None:
            return
        self._profile.stop()
        self._directory.mkdir(parents=True, exist_ok=True)
        trace = self._directory / f"steps_{self._first}_{self._last}.json.gz"
        self._profile.export_chrome_trace(str(trace))
        self._profile = None
        self._say(f"trace        {trace}")


def parse_range(text: str) -> tuple[int, int]:
    """Parse ``FIRST:LAST``, the first and the last step to record.

    Raises:
        ConfigError: the text is not two positive whole numbers in ascending order.
    """
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        raise ConfigError(f"--profile-steps {text}: write it as FIRST:LAST, for example 100:104")
    return int(first), int(last)
