"""Adapters of the non-autoregressive baselines, which are models of BERT-NAR-BERT's own classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bnb_ds.baselines.from_bart import halves_of_bart, is_bart, load_bart
from bnb_ds.baselines.nar_settings import CmlmSection, ElmerSection, InatSection, NarSection, NatSection
from bnb_ds.baselines.tokenizers import read_tokenizer
from bnb_ds.common.hub import checkpoint_errors
from bnb_ds.config.model_section import ModelSection
from bnb_ds.data.batch import PackedBatch
from bnb_ds.data.rewriting import Rewriting
from bnb_ds.data.tokenization import load_tokenizer
from bnb_ds.errors import ConfigError
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.flops import forward_flops
from bnb_ds.model.students.layer_choice import cut_halves
from bnb_ds.model_factory import bnb_fields, dropout_fields, refuse_misfits
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.systems.bnb import BnbGenerator
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.task import Task
from bnb_ds.train.objectives import PLAIN, MaskedTokens, Objective, ObjectiveSettings, Reconstruction


class NarGenerator(BnbGenerator):
    """A BERT-NAR-BERT with one position for each token, and some fields fixed by its kind."""

    section: NarSection

    @classmethod
    def make_codec(cls, task: Task, section: NarSection, data: TaskDataSection) -> Codec:
        if not is_bart(section.encoder):
            return super().make_codec(task, section, data)
        if section.decoder is not None:
            raise ConfigError("model.decoder: model.encoder is a BART, which has a decoder of its own; remove decoder")
        source = read_tokenizer(data.tokenizer or section.encoder)
        return Codec(source, source if data.target_tokenizer is None else read_tokenizer(data.target_tokenizer))

    @classmethod
    def load_codec(cls, directory: Path) -> Codec:
        return Codec.load(directory, _read_tokenizer)

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
        if self._config is None and is_bart(self.section.encoder):
            section = self.model_section
            halves = halves_of_bart(section.encoder, section.max_position_embeddings, **dropout_fields(section))
            self._config = BnbConfig(**halves, **bnb_fields(section, self._source, self._target), head_transform=False)
            cut_halves(self._config, section.encoder_layers, section.decoder_layers)
            refuse_misfits(self._config, self._source, self.lengths.source, self._target)
            self._refuse_long_targets(self._config)
        return super().config()

    def objective(self, settings: ObjectiveSettings = PLAIN) -> Objective:
        if settings.glancing is not None and self.has_own_noise:
            raise ConfigError(f"glancing: kind {self.kind} has its own noise; remove glancing")
        if settings.glancing is not None and self.config().kl_weight:
            raise ConfigError(
                "glancing with one token for each position has no smoothing term: set model.label_smoothing to 0"
            )
        return super().objective(settings)

    def build(self) -> nn.Module:
        if not is_bart(self.section.encoder):
            return super().build()
        model = BnbForConditionalGeneration(self.config())
        load_bart(model, self.section.encoder)
        return model


def _read_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model directory: a BERT's, or a BART's."""
    path = directory / "tokenizer.json"
    with checkpoint_errors(directory, "tokenizer"):
        kind = json.loads(path.read_text(encoding="utf-8"))["model"]["type"] if path.is_file() else "WordPiece"
    if kind == "WordPiece":
        return load_tokenizer(directory)
    with checkpoint_errors(directory, "tokenizer"):
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)


class Nat(NarGenerator):
    """NAT without fertilities."""

    kind = "nat"
    section: NatSection


class Inat(NarGenerator):
    """iNAT, which is trained on several passes."""

    kind = "inat"
    has_own_noise = True
    section: InatSection

    def objective(self, settings: ObjectiveSettings = PLAIN) -> Objective:
        super().objective(settings)  # refuses what a model of one token a slot has not
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


class Cmlm(NarGenerator):
    """CMLM, which is trained to predict masked tokens of the target."""

    kind = "cmlm"
    has_own_noise = True
    section: CmlmSection

    def objective(self, settings: ObjectiveSettings = PLAIN) -> Objective:
        super().objective(settings)  # refuses what a model of one token a slot has not
        return MaskedTokens()


class Elmer(NarGenerator):
    """ELMER, with soft or hard early exit."""

    kind = "elmer"
    section: ElmerSection

    def objective(self, settings: ObjectiveSettings = PLAIN) -> Objective:
        share = self.section.mixed_training if settings.mixed_training is None else settings.mixed_training
        return super().objective(replace(settings, mixed_training=share or None))
