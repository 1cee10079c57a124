"""Targets that cannot be written into the decoder's slots. A run counts them before it begins, and says so.

Such a target adds nothing to the loss. Where most targets are like that, a run would train on next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bnb_ds.errors import ConfigError

_WARN_ABOVE = 0.05
_REFUSE_ABOVE = 0.5


@dataclass(frozen=True)
class Misfits:
    """What was counted in one split.

    Attributes:
        number: samples with a target that does not fit.
        looked_at: samples that were looked at.
        total: samples of the split.
    """

    number: int
    looked_at: int
    total: int

    @property
    def share(self) -> float:
        """Of the samples that were looked at."""
        return self.number / max(self.looked_at, 1)

    def __str__(self) -> str:
        among = f"{self.looked_at:,}" if self.looked_at == self.total else f"{self.looked_at:,} looked at"
        return f"{self.number:,} of {among} ({self.share:.1%})"


def count_misfits(
    count: Callable[[np.ndarray], int],
    total: int,
    *,
    most: int | None = None,
    chunk: int = 4096,
    progress: Callable[[], None] = lambda: None,
) -> Misfits:
    """Count the samples of a split whose target does not fit.

    Args:
        count: int64 sample ids -> how many of these samples do not fit.
        total: samples of the split.
        most: look only at so many, evenly spaced; None: at all.
        chunk: samples that are looked at together.
        progress: called now and then.
    """
    ids = np.arange(total) if most is None or most >= total else np.linspace(0, total - 1, most).astype(np.int64)
    number = 0
    for begin in range(0, ids.size, chunk):
        progress()
        number += count(ids[begin : begin + chunk])
    return Misfits(number, ids.size, total)


def misfit_lines(splits: Mapping[str, Misfits]) -> Iterator[str]:
    """Lines for the user: how many targets of each split do not fit, and a warning where they are many.

    Args:
        splits: name of a split -> what was counted in it.
    """
    yield "slots        targets that do not fit: " + ", ".join(f"{name} {found}" for name, found in splits.items())
    for name, found in splits.items():
        if found.share > _WARN_ABOVE:
            yield (
                f"warning      {found.share:.1%} of the targets of {name} do not fit into the decoder's slots and add"
                " nothing to the loss; raise model.decoder_length_ratio, or cut the targets"
            )


def length_lines(splits: Mapping[str, Misfits]) -> Iterator[str]:
    """Warnings for the user: where many targets have a length that the model cannot predict.

    Args:
        splits: name of a split -> what was counted in it.
    """
    for name, found in splits.items():
        if found.share > _WARN_ABOVE:
            yield (
                f"warning      {found.share:.1%} of the targets of {name} differ more in length from their sources than"
                " the model can predict, so that their outputs have other lengths; widen model.length_difference_min"
                " and model.length_difference_max"
            )


def refuse_misfits(splits: Mapping[str, Misfits]) -> None:
    """Refuse data most of whose targets do not fit.

    Raises:
        ConfigError: more than half of the targets of a split do not fit.
    """
    for name, found in splits.items():
        if found.share > _REFUSE_ABOVE:
            raise ConfigError(
                f"model.decoder_length_ratio: {found} targets of the {name} split do not fit into the decoder's slots,"
                " so nothing would be learnt from them; raise it (above 2 with model.decoder_positions absolute), or"
                " cut the targets"
            )
