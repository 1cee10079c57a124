"""What reads the slots of a configured model, and what the length classification adds to the loss.

Shapes: B sequences, C length classes.
"""

from __future__ import annotations

from torch import Tensor

from bnb_ds.errors import ConfigError
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.length import LengthPredictor
from bnb_ds.targets.ctc_target import CtcTarget
from bnb_ds.targets.dag_target import DagTarget
from bnb_ds.targets.interface import Target, Targets
from bnb_ds.targets.token_target import TokenTarget


def target_of(config: BnbConfig) -> Target:
    """The target of a model, with the settings of its configuration."""
    if config.target_kind == "dag":
        return DagTarget(config.loss_reduction)
    if config.target_kind == "token":
        return TokenTarget(config.blank_token_id, config.kl_weight)
    return CtcTarget(config.blank_token_id, config.loss_reduction, config.kl_weight)


def check_glancing(config: BnbConfig) -> None:
    """Raise ConfigError if a model cannot be trained with glancing."""
    if not config.decoder_tokens:
        raise ConfigError("glancing shows target tokens to the decoder: set model.decoder_tokens to true")
    if config.target_kind == "token" and config.kl_weight:
        raise ConfigError("glancing with one token for each slot has no smoothing term: set model.kl_weight to 0")


def check_ngrams(config: BnbConfig, size: int) -> None:
    """Raise ConfigError if a model cannot be trained on matches of n-grams of ``size`` tokens."""
    if config.target_kind == "token":
        raise ConfigError("ngram_size: a model of one token a slot has no loss of n-grams; remove ngram_size")
    if config.target_kind == "ctc" and size > 2:
        raise ConfigError(f"ngram_size {size}: CTC has a loss of n-grams of 1 or 2 tokens; set ngram_size to 2")


def length_scores(
    predictor: LengthPredictor, logits_BC: Tensor, source_lengths_B: Tensor, targets: Targets, weight_B: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum of the nats of target lengths, each times the weight of its sequence, and their mean."""
    nll_B = predictor.nll(logits_BC, source_lengths_B, targets.lengths)
    return (nll_B * weight_B).sum(), nll_B.detach().mean()
