"""Fills bins with pieces, from the histogram of the pieces' lengths. Memory does not grow with the number of pieces.

The largest piece that still fits goes into a bin first (best fit, largest first). All equal bins are filled at once: a
*pattern* says which lengths go into one bin, and it is repeated until one of these lengths runs out. This is the idea
of Krell et al., "Efficient sequence packing without cross-contamination", 2021. There are at most a few patterns for
each distinct length.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pattern:
    """The contents of one bin, and how many bins have these contents.

    Attributes:
        repetitions: number of bins.
        contents: pairs of a size and the number of its pieces in the bin, largest size first.
    """

    repetitions: int
    contents: tuple[tuple[int, int], ...]


def pack_histogram(counts: np.ndarray, capacity: int, overhead: int) -> list[Pattern]:
    """Patterns that together hold every piece once.

    Args:
        counts: int [L + 1], number of pieces of each size; there are none of size 0.
        capacity: capacity of a bin. The largest piece with its overhead must fit.
        overhead: room that each piece takes in addition to its size.

    Raises:
        ValueError: a piece does not fit into a bin.
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
