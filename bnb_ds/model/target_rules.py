"""What a data loader must know about the model: slots of a source, targets that fit, and what the loss counts.

Pre-training and fine-tuning use the same rules, so that loader and model agree.
"""

from __future__ import annotations

import numpy as np

from bnb_ds.data.batch import count_repeats
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.slots import decoder_lengths, distinct_slots
from bnb_ds.model.target_loss import target_of


class BnbTargetRules:
    """The `bnb_ds.data.batch.TargetRules` of a BERT-NAR-BERT model.

    Args:
        config: the model's configuration.
    """

    def __init__(self, config: BnbConfig) -> None:
        self._config = config
        self._target = target_of(config)

    def slots(self, source_lengths: np.ndarray, target_lengths: np.ndarray) -> np.ndarray:
        """int64 [B], decoder slots, by the policy ``decoder_length``."""
        return decoder_lengths(source_lengths, self._config, target_lengths)

    def fits(
        self, targets: np.ndarray, cu_seqlens: np.ndarray, slots: np.ndarray, source_lengths: np.ndarray
    ) -> np.ndarray:
        """bool [B], as the model's target decides. Slots that are equal count once."""
        distinct = distinct_slots(slots, source_lengths, self._config)
        return self._target.fits(np.diff(cu_seqlens), count_repeats(targets, cu_seqlens), distinct)

    def loss_count(self, num_targets: int, num_sequences: int) -> int:
        """The number of tokens or of sequences, depending on ``loss_reduction``."""
        return num_targets if self._config.loss_reduction == "token" else num_sequences
