"""Adapters of the non-autoregressive baselines, which are models of BERT-NAR-BERT's own classes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bnb_ds.baselines.nar_settings import ElmerSection, InatSection, NarSection, NatSection
from bnb_ds.config.model_section import ModelSection
from bnb_ds.data.batch import PackedBatch
from bnb_ds.data.rewriting import Rewriting
from bnb_ds.errors import ConfigError
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.flops import forward_flops
from bnb_ds.systems.bnb import BnbGenerator
from bnb_ds.train.objectives import Objective, Reconstruction


class NarGenerator(BnbGenerator):
    """A BERT-NAR-BERT with one position for each token, and some fields fixed by its kind."""

    section: NarSection

    @property
    def model_section(self) -> ModelSection:
        return self.section.as_bnb()

    def config(self) -> BnbConfig:
        copies = self._config is None and self.section.fixed.get("slot_tokens") == "source"
        if copies and self._source.tokenizer_hash != self._target.tokenizer_hash:
            raise ConfigError(
                f"data.target_tokenizer: kind {self.kind} copies the source's tokens to the decoder, so both halves"
                " need one tokenizer; remove data.target_tokenizer, and model.decoder if it has another one"
            )
        return super().config()


class Nat(NarGenerator):
    """NAT without fertilities."""

    kind = "nat"
    section: NatSection


class Inat(NarGenerator):
    """iNAT, which is trained on several passes."""

    kind = "inat"
    section: InatSection

    def objective(
        self,
        glancing: Callable[[int], float] | None = None,
        ngram_size: int | None = None,
        mixed_training: float | None = None,
    ) -> Objective:
        if glancing is not None:
            raise ConfigError("glancing: kind inat has its own noise; remove glancing")
        super().objective(glancing, ngram_size, mixed_training)  # refuses what a model of one token a slot has not
        section, vocabulary = self.section, self._target
        if section.passes == 1:
            return Reconstruction()
        special = list(vocabulary.special_ids.values())
        ordinary = np.setdiff1d(np.arange(vocabulary.vocab_size), special)
        return Reconstruction(
            rewriting=Rewriting(ordinary, section.passes - 1, section.noise_share, section.noise_rate)
        )

    def flops(self, config: BnbConfig, batch: PackedBatch) -> int:
        return forward_flops(config, batch.source_lengths, batch.decoder_lengths, decoder_passes=self.section.passes)


class Elmer(NarGenerator):
    """ELMER, with soft or hard early exit."""

    kind = "elmer"
    section: ElmerSection

    def objective(
        self,
        glancing: Callable[[int], float] | None = None,
        ngram_size: int | None = None,
        mixed_training: float | None = None,
    ) -> Objective:
        share = self.section.mixed_training if mixed_training is None else mixed_training
        return super().objective(glancing, ngram_size, share or None)
