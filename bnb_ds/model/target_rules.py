"""What reads the slots of a configured model, how it can be trained, and what a data loader must know about it.

Pre-training and fine-tuning use the same rules, so that loader and model agree.
"""

from __future__ import annotations

import numpy as np

from bnb_ds.data.batch import count_repeats
from bnb_ds.errors import ConfigError
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.slots import decoder_lengths, distinct_slots
from bnb_ds.targets.ctc_target import CtcTarget
from bnb_ds.targets.dag_target import DagTarget
from bnb_ds.targets.interface import Target
from bnb_ds.targets.token_target import TokenTarget


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

    def has_length(self, source_lengths: np.ndarray, target_lengths: np.ndarray) -> np.ndarray:
        """bool [B], whether the model can predict the target's length, if it predicts lengths."""
        config, differences = self._config, target_lengths - source_lengths
        if config.decoder_length != "predicted":
            return np.ones(differences.size, dtype=bool)
        return (config.length_difference_min <= differences) & (differences <= config.length_difference_max)

    def loss_count(self, num_targets: int, num_sequences: int) -> int:
        """The number of tokens or of sequences, depending on ``loss_reduction``."""
        return num_targets if self._config.loss_reduction == "token" else num_sequences


def target_of(config: BnbConfig) -> Target:
    """The target of a model, with the settings of its configuration."""
    if config.target_kind == "dag":
        return DagTarget(config.loss_reduction)
    if config.target_kind == "token":
        return TokenTarget(config.blank_token_id, config.kl_weight)
    return CtcTarget(config.blank_token_id, config.loss_reduction, config.kl_weight)


def check_glancing(config: BnbConfig, mask_share: float = 0.0) -> None:
    """Raise ConfigError if a model cannot be trained with glancing."""
    if not config.has_decoder:
        raise ConfigError(
            "glancing would hide the source, which the slots of a model without a decoder hold; remove it"
        )
    if not config.decoder_tokens:
        raise ConfigError("glancing shows target tokens to the decoder: set model.decoder_tokens to true")
    if config.target_kind == "token" and config.kl_weight:
        raise ConfigError("glancing with one token for each slot has no smoothing term: set model.kl_weight to 0")
    if mask_share and config.target_kind != "token":
        raise ConfigError(
            f"glancing.mask_predict is {mask_share}, and mask-predict needs one token for each position: leave it out, "
            "or set model.target to token and model.decoder_length to predicted"
        )


def check_mixed_training(config: BnbConfig) -> None:
    """Raise ConfigError if a model cannot be trained with some of its layers' predictions replaced."""
    if not config.deep_supervision:
        raise ConfigError(
            "mixed_training replaces what the decoder's layers predict: set model.deep_supervision to true"
        )


def check_ngrams(config: BnbConfig, size: int) -> None:
    """Raise ConfigError if a model cannot be trained on matches of n-grams of ``size`` tokens."""
    if config.target_kind == "token":
        raise ConfigError("ngram_size: a model of one token a slot has no loss of n-grams; remove ngram_size")
    if config.target_kind == "ctc" and size > 2:
        raise ConfigError(f"ngram_size {size}: CTC has a loss of n-grams of 1 or 2 tokens; set ngram_size to 2")
