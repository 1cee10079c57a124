"""What one rank's data loader raises ends every rank with the same error, at the same step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

from bnb_ds.distributed import ranks
from bnb_ds.errors import BnbError, DataError

T = TypeVar("T")


def agreed(steps: Iterable[T], device: torch.device) -> Iterator[T]:
    """Yield the steps as they come as long as every rank has its own.

    Ranks read their samples each for themselves, and would wait for one that cannot until they run out of time. They
    exchange one number a step instead.

    Args:
        steps: the same number on every rank.
        device: of this rank, where the number travels.

    Raises:
        DataError: a rank cannot read; the message names the first such rank and what it said, on every rank. What is
            no user's error is raised as it is on the rank where it happened.
    """
    iterator = iter(steps)
    while True:
        step, error = None, None
        try:
            step = next(iterator)
        except StopIteration:
            return
        except Exception as raised:
            error = raised
        if ranks.world_size() == 1:
            if error is not None:
                raise error
        elif float(ranks.all_sum(torch.tensor([float(error is not None)], device=device))) > 0:
            _raise_together(error)
        yield step


def _raise_together(error: Exception | None) -> None:
    told = [None if error is None else f"{error}" if isinstance(error, BnbError) else repr(error)]
    first_rank, message = next((rank, text) for rank, (text,) in enumerate(ranks.gather(told)) if text)
    if error is not None and not isinstance(error, BnbError):
        raise error
    raise DataError(f"rank {first_rank}: {message}") from error
