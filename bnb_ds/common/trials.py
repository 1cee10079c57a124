"""Trying a kernel or a package once before anything relies on it: that it is installed proves little."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_LONGEST = 160  # characters of a fault
#: of one trial; on busy cores DeepSpeed compiles its optimizer for minutes
_SECONDS = 600.0


def fault_of(trial: Callable[[], None], what: str, way_out: str) -> str | None:
    """Run ``trial``; None if it ends, else its error in one line.

    Args:
        trial: raises if something does not work.
        what: is tried, in words.
        way_out: what helps if the trial never ends.
    """
    try:
        # A trial leaves no trace in the graph, and autocast would change what it compares.
        with (
            ends_in_time(what, way_out),
            torch.no_grad(),
            torch.autocast("cuda", enabled=False),
            torch.autocast("cpu", enabled=False),
        ):
            trial()
    except Exception as error:  # whatever a broken package raises: the caller has another way
        text = " ".join(str(error).split())
        text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
        return f"{type(error).__name__}: {text}" if text else type(error).__name__
    return None


@contextmanager
def ends_in_time(what: str, way_out: str, seconds: float | None = None) -> Iterator[None]:
    """If the block hangs, say so in one line and end the process with exit code 2.

    What waits for a GPU, a compiler or another process's lock cannot be interrupted, so nothing gentler is possible.
    """
    limit = _SECONDS if seconds is None else seconds

    def give_up() -> None:
        print(f"error: trying {what} has not ended after {limit:g} s: {way_out}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(limit, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def expect(name: str, got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Raises ArithmeticError if two tensors differ by more than ``tolerance``, relative to the largest number."""
    got, expected = got.double(), expected.to(got.device).double()
    largest = float(torch.where(expected.isfinite(), expected, 0.0).abs().amax()) if expected.numel() else 0.0
    if not torch.allclose(got, expected, rtol=tolerance, atol=tolerance * largest, equal_nan=True):
        raise ArithmeticError(f"wrong numbers ({name})")
