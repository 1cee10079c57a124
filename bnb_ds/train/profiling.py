"""``--profile-steps A:B``: a trace of some steps, to be opened in chrome://tracing or Perfetto."""

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
    """Records rank 0 from the first step of a range to its last, and writes one trace.

    Args:
        first: first step recorded; 0 with ``last`` -1 for none.
        last: last step recorded.
        directory: where the trace goes.
        say: told where the trace is.
    """

    def __init__(self, first: int, last: int, directory: Path, say: Callable[[str], None]) -> None:
        self._first, self._last = first, last
        self._directory = directory
        self._say = say
        self._profile: profile | None = None

    @contextmanager
    def __call__(self, step: int) -> Iterator[None]:
        """Around one step."""
        inside = self._first <= step <= self._last and ranks.is_main()
        if inside and self._profile is None:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler reports its own start and stop
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, profile_memory=True)
            self._profile.start()
        yield
        if step == self._last:
            self.close()

    def close(self) -> None:
        """Write what has been recorded; a run that ends early has fewer steps to show."""
        if self._profile is None:
            return
        self._profile.stop()
        self._directory.mkdir(parents=True, exist_ok=True)
        trace = self._directory / f"steps_{self._first}_{self._last}.json.gz"
        self._profile.export_chrome_trace(str(trace))
        self._profile = None
        self._say(f"trace        {trace}")


def parse_range(text: str) -> tuple[int, int]:
    """``A:B`` -> the first and the last step to record.

    Raises:
        ConfigError: it is not two whole numbers in order.
    """
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        raise ConfigError(f"--profile-steps {text}: write it as FIRST:LAST, for example 100:104")
    return int(first), int(last)
