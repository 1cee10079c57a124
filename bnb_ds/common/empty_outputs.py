"""A warning where a model writes mostly nothing, which is no error: a model in training begins so."""

from __future__ import annotations

from collections.abc import Iterable

_WARN_ABOVE = 0.5


def count_empty(outputs: Iterable[str]) -> int:
    """How many texts hold nothing but spaces."""
    return sum(not output.strip() for output in outputs)


def empty_warning(num_empty: int, num_outputs: int) -> str | None:
    """One line for the user if more than half of the outputs are empty; else None.

    Args:
        num_empty: outputs without text.
        num_outputs: outputs that should have text.
    """
    if num_empty <= _WARN_ABOVE * num_outputs:
        return None
    return (
        f"warning: {num_empty:,} of {num_outputs:,} outputs are empty: the model reads no token off its slots. So it is"
        " after too few steps of training: go on until token_accuracy, or the scores, of the run's evaluations have"
        " left 0 (bnb-ds curves RUN); or limits and bad words forbid all that it would write"
    )
