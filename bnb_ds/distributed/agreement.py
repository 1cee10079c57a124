"""Ends all ranks at the same step and with the same error when one rank's data loader fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar, cast

import torch

from bnb_ds.distributed import ranks
from bnb_ds.errors import BnbError, DataError

T = TypeVar("T")


def agreed(
    steps: Iterable[T], device: torch.device, on_loaded: Callable[[float], None] = lambda seconds: None
) -> Iterator[T]:
    """Yield each step once every rank has loaded its own part of it.

    Each rank loads its own data. If one fails, the others would block until the time-out, so at every step all ranks
    exchange a single error flag.

    Args:
        steps: this rank's steps; every rank has the same number of them.
        device: this rank's device, which holds the flag.
        on_loaded: called with the seconds that this rank alone has waited for each step.

    Raises:
        DataError: a rank cannot load its data. Every rank raises the message of the first such rank, with its number.
            Any other exception is re-raised unchanged on the rank that hit it.
    """
    iterator = iter(steps)
    while True:
        step: T | None = None
        error: Exception | None = None
        start = time.perf_counter()
        try:
            step = next(iterator)
        except StopIteration:
            return
        except Exception as raised:
            error = raised
        on_loaded(time.perf_counter() - start)
        if ranks.world_size() == 1:
            if error is not None:
                raise error
        elif float(ranks.all_sum(torch.tensor([float(error is not None)], device=device))) > 0:
            _raise_together(error)
        yield cast("T", step)


def _raise_together(error: Exception | None) -> None:
    told = [None if error is None else f"{error}" if isinstance(error, BnbError) else repr(error)]
    first_rank, message = next((rank, text) for rank, (text,) in enumerate(ranks.gather(told)) if text)
    if error is not None and not isinstance(error, BnbError):
        raise error
    raise DataError(f"rank {first_rank}: {message}") from error
