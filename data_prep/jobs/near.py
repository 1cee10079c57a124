"""Near-duplicates: documents that share most of their runs of five words.

MinHash gives each document a signature whose places agree in the share of runs that two documents have in common. The
signature is cut into bands. Two documents that agree in a whole band are taken for near-duplicates, and so are those
that others join. Of such a group the first document stays. Two documents that share 72% of their runs meet in about
two of three cases, those that share 85% almost always, those that share 50% in one case of twenty.
"""

from __future__ import annotations

import hashlib
import re
from importlib.metadata import version
from typing import Any

import numpy as np

from bnb_ds.errors import ConfigError, how_to_install

WORDS, BANDS, ROWS = 5, 14, 8
_SEED = 1
_SCHEME = "affine64"  # of the hash functions of datasketch
_WORD = re.compile(r"\w+")


def settings() -> dict[str, Any]:
    """What decides about near-duplicates, for the manifest.

    Raises:
        ConfigError: the library is not installed.
    """
    _library()
    return {"words": WORDS, "bands": BANDS, "rows": ROWS, "library": f"datasketch {version('datasketch')}"}


class Signatures:
    """Makes the bands of documents.

    Raises:
        ConfigError: the library is not installed.
    """

    def __init__(self) -> None:
        self._minhash = _library()
        self._permutations = self._minhash(BANDS * ROWS, seed=_SEED, scheme=_SCHEME).permutations

    def bands(self, text: str) -> bytes:
        """The bands of a document, 8 bytes each; zeros for one without words, which is like no other."""
        words = _WORD.findall(text.lower())
        if not words:
            return bytes(8 * BANDS)
        runs = {" ".join(words[i : i + WORDS]) for i in range(max(len(words) - WORDS + 1, 1))}
        found = self._minhash(BANDS * ROWS, permutations=self._permutations, scheme=_SCHEME)
        found.update_batch([run.encode("utf-8", "surrogatepass") for run in runs])
        values = found.hashvalues.astype("<u8").reshape(BANDS, ROWS)
        return b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in values)


def later_ones(bands: np.ndarray) -> np.ndarray:
    """Which documents are near-duplicates of earlier ones.

    Args:
        bands: uint64 [num_documents, BANDS], in the order of the corpus.

    Returns:
        bool [num_documents].
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(bands)
    with_words = np.flatnonzero(bands.any(axis=1))
    ones, others = [], []
    for band in bands[with_words].T:
        order = np.argsort(band, kind="stable")
        equal = np.flatnonzero(band[order[1:]] == band[order[:-1]])
        ones.append(with_words[order[equal]])
        others.append(with_words[order[equal + 1]])
    edges = (np.concatenate(ones), np.concatenate(others)) if ones else (np.zeros(0, int), np.zeros(0, int))
    graph = coo_array((np.ones(len(edges[0]), dtype=bool), edges), shape=(count, count))
    group = connected_components(graph, directed=False)[1]
    is_first = np.zeros(count, dtype=bool)
    is_first[np.unique(group, return_index=True)[1]] = True
    return ~is_first


def _library() -> Any:
    try:
        from datasketch import MinHash
    except ImportError:
        raise ConfigError(f"--drop-near-duplicates: datasketch is not installed; {how_to_install('filters')}") from None
    return MinHash
