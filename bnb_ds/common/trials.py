"""Trying a kernel or a package once before anything relies on it: that it is installed proves little."""

from __future__ import annotations

from collections.abc import Callable

import torch

_LONGEST = 160  # characters of a fault


def fault_of(trial: Callable[[], None]) -> str | None:
    """Run ``trial``; None if it ends, else its error in one line."""
    try:
        # A trial leaves no trace in the graph, and autocast would change what it compares.
        with torch.no_grad(), torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            trial()
    except Exception as error:  # whatever a broken package raises: the caller has another way
        text = " ".join(str(error).split())
        text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
        return f"{type(error).__name__}: {text}" if text else type(error).__name__
    return None


def expect(name: str, got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Raises ArithmeticError if two tensors differ by more than ``tolerance``, relative to the largest number."""
    got, expected = got.double(), expected.to(got.device).double()
    largest = float(torch.where(expected.isfinite(), expected, 0.0).abs().amax()) if expected.numel() else 0.0
    if not torch.allclose(got, expected, rtol=tolerance, atol=tolerance * largest, equal_nan=True):
        raise ArithmeticError(f"wrong numbers ({name})")
