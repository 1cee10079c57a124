"""Fused masking and permutation of a packed batch: the pre-training noise of BnB (section 2.3 of the paper).

All sequences of a batch are corrupted in a handful of vectorised passes. What happens to a sample is a pure function
of its key, which the caller derives from (seed, epoch, sample).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnb_ds.randomness import hash64, uniform

# Devlin et al., NAACL 2019, section 3.1: of the chosen tokens 80% become [MASK], 10% a random token, 10% stay.
_MASK_SHARE = 0.8
_RANDOM_SHARE = 0.1

# One independent stream of draws for each decision.
_STREAM_PERMUTED, _STREAM_ORDER, _STREAM_CHOSEN, _STREAM_FATE, _STREAM_TOKEN = range(5)


@dataclass(frozen=True)
class Corruption:
    """Which noise and how much of it; probabilities are per ordinary (not special) token."""

    mask_probability: float
    permute_probability: float
    mask_id: int
    vocab_size: int

    def __call__(
        self, token_ids: np.ndarray, cu_seqlens: np.ndarray, sample_keys: np.ndarray
    ) -> tuple[np.ndarray, int]:
        """Corrupt a packed batch: permute first, then mask.

        Args:
            token_ids: int64 [N], sequences back to back, each ``[CLS] tokens [SEP]``; first and last are never touched.
            cu_seqlens: int [B + 1], where each sequence begins.
            sample_keys: uint64 [B], the random key of each sample.

        Returns:
            int64 [N], the corrupted ids, and the number of tokens chosen for masking.
        """
        lengths = np.diff(cu_seqlens)
        row_N = np.repeat(np.arange(lengths.size), lengths)
        index_N = np.arange(token_ids.size) - np.repeat(cu_seqlens[:-1], lengths)
        ordinary = np.flatnonzero((index_N > 0) & (index_N < lengths[row_N] - 1))
        rows, counters = row_N[ordinary], index_N[ordinary]

        def draw(stream: int, subset: np.ndarray | slice = slice(None)) -> np.ndarray:
            return uniform(hash64(sample_keys, stream)[rows[subset]], counters[subset])

        corrupted = token_ids.copy()
        if self.permute_probability > 0:
            moved = np.flatnonzero(draw(_STREAM_PERMUTED) < self.permute_probability)
            # Sorting by row + u orders the moved tokens of each row at random and keeps every token in its row.
            shuffled = moved[np.argsort(rows[moved] + draw(_STREAM_ORDER, moved), kind="stable")]
            corrupted[ordinary[moved]] = token_ids[ordinary[shuffled]]
        if self.mask_probability == 0:
            return corrupted, 0
        chosen = np.flatnonzero(draw(_STREAM_CHOSEN) < self.mask_probability)
        fate = draw(_STREAM_FATE, chosen)
        masked = chosen[fate < _MASK_SHARE]
        random = chosen[(fate >= _MASK_SHARE) & (fate < _MASK_SHARE + _RANDOM_SHARE)]
        corrupted[ordinary[masked]] = self.mask_id
        corrupted[ordinary[random]] = (draw(_STREAM_TOKEN, random) * self.vocab_size).astype(np.int64)
        return corrupted, chosen.size
