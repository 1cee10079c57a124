"""Filling bins with pieces of known lengths, by the histogram of the lengths: any number of pieces, little memory.

Best fit, largest first, done for all equal bins at once: a *pattern* is what goes into one bin, repeated until one of
its lengths runs out (the idea of Krell et al., "Efficient sequence packing without cross-contamination", 2021). There
are at most a few patterns per distinct length, however many pieces there are.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pattern:
    """What goes into one bin, and how many bins are filled with it: (size, copies of it), largest size first."""

    repetitions: int
    contents: tuple[tuple[int, int], ...]


def pack_histogram(counts: np.ndarray, capacity: int, overhead: int) -> list[Pattern]:
    """Patterns that together hold every piece once.

    Args:
        counts: int [L + 1], pieces of each size; none of size 0.
        capacity: of a bin; the largest piece with its overhead fits.
        overhead: what a piece takes in a bin beyond its size.
    """
    left = counts.astype(np.int64).tolist()
    sizes = [size for size, count in enumerate(left) if count]
    patterns = []
    while sizes:
        room, contents = capacity, []
        end = len(sizes)
        while (end := bisect.bisect_right(sizes, room - overhead, hi=end)) > 0:
            size = sizes[end - 1]
            copies = min(room // (size + overhead), left[size])
            contents.append((size, copies))
            room -= copies * (size + overhead)
            end -= 1
        if not contents:
            raise ValueError(f"a piece of {sizes[-1]} + {overhead} does not fit a bin of {capacity}")
        repetitions = min(left[size] // copies for size, copies in contents)
        patterns.append(Pattern(repetitions, tuple(contents)))
        for size, copies in contents:
            left[size] -= repetitions * copies
        sizes = [size for size in sizes if left[size]]
    return patterns
