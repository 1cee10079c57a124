"""The noise of a model that rewrites whole outputs: what the decoder reads in further passes of training.

The first pass reads what every pass begins with. In each further pass a sequence reads what it wrote in the pass
before, or, by chance, its target with noise. The noise walks over the target from left to right. A token is chosen by
chance; then it becomes a random token, or its right neighbour becomes the same token, or the two change places. The
first and the last token, [CLS] and [SEP], stay.

All draws belong to a sample, a pass and a token, so they do not depend on ranks or micro batches.

Shapes: B sequences, M target tokens of all sequences together, S target tokens of the longest, P further passes.

Source: Lee et al., Deterministic Non-Autoregressive Neural Sequence Modeling by Iterative Refinement, EMNLP 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnb_ds.common.randomness import DRAWS, draws_at, packed_draws, stream_keys

#: the first stream of draws for passes; each further pass has the next one
PASS_DRAWS = 64
_STREAM_READS, _STREAM_CHOSEN, _STREAM_TOKEN = range(3)
_KINDS = 3


@dataclass(frozen=True, eq=False)
class Rewriting:
    """The noise, and how much of it there is.

    Attributes:
        tokens: int64, ids that a random token is drawn from.
        passes: P, further passes in training.
        target_share: probability that a sequence reads its noisy target in a pass.
        rate: probability that a token of a noisy target is chosen.
    """

    tokens: np.ndarray
    passes: int = 3
    target_share: float = 0.5
    rate: float = 0.33

    def __call__(self, targets: np.ndarray, cu_seqlens: np.ndarray, sample_keys: np.ndarray) -> np.ndarray:
        """What the slots of sequences read in each further pass.

        Args:
            targets: int64 [M], concatenated.
            cu_seqlens: int64 [B + 1], where each target begins.
            sample_keys: uint64 [B], the random key of each sample.

        Returns:
            int64 [P, M], -1 where a sequence reads what it wrote in the pass before.
        """
        return np.stack(
            [self._pass(targets, cu_seqlens, stream_keys(sample_keys, PASS_DRAWS + p)) for p in range(self.passes)]
        )

    def _pass(self, targets: np.ndarray, cu_seqlens: np.ndarray, keys: np.ndarray) -> np.ndarray:
        draws = draws_at(stream_keys(keys, _STREAM_READS), np.zeros(keys.size, np.uint32))
        reads_target = draws < round(self.target_share * DRAWS)
        noisy = self.noisy(targets, cu_seqlens, keys)
        return np.where(np.repeat(reads_target, np.diff(cu_seqlens)), noisy, -1)

    def noisy(self, targets: np.ndarray, cu_seqlens: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Targets with noise, int64 [M]. Arguments are those of `__call__`; ``keys`` are of one pass."""
        lengths = np.diff(cu_seqlens)
        chosen = packed_draws(stream_keys(keys, _STREAM_CHOSEN), cu_seqlens).astype(np.int64)
        words = packed_draws(stream_keys(keys, _STREAM_TOKEN), cu_seqlens).astype(np.int64)
        random = self.tokens[words * self.tokens.size // DRAWS]
        below = round(self.rate * DRAWS)
        # A draw below its threshold is uniform below it, so it can decide what happens to the token too.
        kinds = np.where(chosen < below, chosen * _KINDS // max(below, 1), -1)
        noisy = targets.copy()
        for column in range(1, int(lengths.max()) - 1):
            place = (cu_seqlens[:-1] + column)[lengths - 1 > column]
            has_right = (column + 2 < lengths)[lengths - 1 > column]
            kind = kinds[place]
            here, right = noisy[place], noisy[np.where(has_right, place + 1, place)]
            noisy[place] = np.select([kind == 0, (kind == 2) & has_right], [random[place], right], here)
            moves = (kind >= 1) & has_right
            noisy[place[moves] + 1] = here[moves]
        return noisy
