"""Adapters of BERT-NAR-BERT: the whole model for texts, and its encoder for labels (GLUE)."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from bnb_ds.common.hub import TARGET_TOKENIZER, checkpoint_errors, tokenizer_directory
from bnb_ds.config.model_section import ModelSection
from bnb_ds.data.batch import PackedBatch
from bnb_ds.data.tokenization import TokenizerVocabulary, load_tokenizer
from bnb_ds.decoding.decode import decode_batch, greedy_rows
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.model.backbones.entries import backbone_of, positions_of
from bnb_ds.model.classification import BnbForSequenceClassification
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.flops import classification_flops, forward_flops
from bnb_ds.model.from_bert import read_bert_config
from bnb_ds.model.slots import longest_targets
from bnb_ds.model.students.layer_choice import cut_halves, shallow_model
from bnb_ds.model.target_rules import BnbTargetRules, check_glancing, check_mixed_training, check_ngrams
from bnb_ds.model_factory import DROPOUT_NAMES, build_model, model_config, refuse_equal_slots, refuse_other_padding
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.systems.base import Prediction, System
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.task import Task
from bnb_ds.train.objectives import PLAIN, Glancing, NgramMatches, Objective, ObjectiveSettings, Reconstruction


class BnbModelSection(ModelSection):
    """The ``model`` section of a BERT-NAR-BERT, or of its encoder for labels; fields as in pre-training."""

    kind: Literal["bnb"]


class BnbSystem(System):
    """The tokenizers of both adapters."""

    kind = "bnb"
    section: BnbModelSection

    @classmethod
    def make_codec(cls, task: Task, section: BnbModelSection, data: TaskDataSection) -> Codec:
        sources = data.tokenizer or section.checkpoint or section.encoder
        if sources is None:
            raise ConfigError("data.tokenizer: a model with random weights has no tokenizer; give the directory of one")
        source = load_tokenizer(_tokenizer_of(sources))
        if not task.is_generation:
            return Codec(source, source)
        targets = data.target_tokenizer
        if targets is None and section.checkpoint is not None:
            own = Path(section.checkpoint) / TARGET_TOKENIZER
            targets = str(own) if own.is_dir() else None
        if targets is None:
            targets = section.decoder
        return Codec(source, source if targets is None else load_tokenizer(_tokenizer_of(targets)))

    @classmethod
    def load_codec(cls, directory: Path) -> Codec:
        return Codec.load(directory)


class BnbGenerator(BnbSystem):
    """The whole model, which writes texts in one pass."""

    #: whether training shows tokens of the target in a way of its own, beside which there is no glancing
    has_own_noise: ClassVar[bool] = False
    _config: BnbConfig | None = None

    @property
    def model_section(self) -> ModelSection:
        """The section that the model is made of."""
        return self.section

    @property
    def _source(self) -> TokenizerVocabulary:
        return TokenizerVocabulary.of(self.codec.source)

    @property
    def _target(self) -> TokenizerVocabulary:
        return TokenizerVocabulary.of(self.codec.target)

    def config(self) -> BnbConfig:
        if self._config is None:
            if self.model_section.pair_types and len(self.task.sources) == 1:
                raise ConfigError(
                    f"model.pair_types: is for two source texts, and task {self.task.name} reads one; remove it"
                )
            self._config = model_config(self.model_section, self._source, self.lengths.source, self._target)
            self._refuse_long_targets(self._config)
            DecodeOptions.of_model(self._config).check(self._config)
        return self._config

    def empty(self, config: BnbConfig) -> nn.Module:
        return BnbForConditionalGeneration(config)

    def build(self) -> nn.Module:
        return build_model(self.model_section, self._source, self.lengths.source, target=self._target)

    def check_new(self) -> None:
        refuse_equal_slots(self.model_section, self.config())

    def load(self, directory: Path) -> nn.Module:
        with checkpoint_errors(directory, "BERT-NAR-BERT model"):
            model = BnbForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
        self._config = model.config
        return model.eval()

    def flops(self, config: BnbConfig, batch: PackedBatch) -> int:
        return forward_flops(config, batch.source_lengths, batch.decoder_lengths)

    @property
    def target_rules(self) -> BnbTargetRules:
        return BnbTargetRules(self.config())

    def objective(self, settings: ObjectiveSettings = PLAIN) -> Objective:
        if settings.glancing is not None:
            shown = settings.glancing
            check_glancing(self.config(), shown.mask_share if isinstance(shown, Glancing) else 0.0)
        if settings.mixed_training is not None:
            check_mixed_training(self.config())
        if settings.ngram_size is None:
            return Reconstruction(settings)
        check_ngrams(self.config(), settings.ngram_size)
        return NgramMatches(settings)

    def predict(self, model: Any, batch: PackedBatch, device: torch.device) -> Prediction:
        config, options = self.config(), DecodeOptions.of(DecodeOptions.of_model(self.config()), self.decoding)
        output = model(**batch.model_inputs(device), return_best=True)
        loss_sum = float(output.loss_sum)
        if options != DecodeOptions() or self.oracle_length:
            return Prediction(loss_sum, self._decoded(model, batch, options, device))
        if config.decoder_length == "predicted":
            # With labels there is one slot per target token; without them the model predicts the number of slots.
            output = model(**batch.source_inputs(device), return_logits=False, return_best=True)
        rows = greedy_rows(output.best, output.decoder_lengths, config)
        return Prediction(loss_sum, [row.numpy() for row in rows])

    def _decoded(
        self, model: Any, batch: PackedBatch, options: DecodeOptions, device: torch.device
    ) -> list[np.ndarray]:
        """Outputs of one batch by all passes of the model."""
        # With partitioned weights, every rank must take part in the passes of all ranks.
        is_partitioned = hasattr(model, "module") and model.zero_optimization_stage() == 3
        lengths_B = batch.label_lengths.to(device) if self.oracle_length else None
        options = replace(options, ends_early=not is_partitioned)
        decode = partial(decode_batch, options=options, target_lengths_B=lengths_B)
        decoded = model(**batch.source_inputs(device), decode=decode).decoded
        rows = zip(decoded.ids.cpu(), decoded.lengths.tolist(), strict=True)
        return [row[:length].numpy() for row, length in rows]

    def _refuse_long_targets(self, config: BnbConfig) -> None:
        limit = longest_targets(config) if config.decoder_length == "predicted" else None
        if limit is not None and self.lengths.target > limit:
            positions = positions_of(config.decoder)
            has = f"the decoder has {positions} positions"
            if config.target_kind == "dag":
                has = f"the graph has at most {config.link_positions} slots, and the decoder {positions} positions"
            raise ConfigError(f"data.max_target_length {self.lengths.target}: {has}; set it to {limit}")


class BnbClassifier(BnbSystem):
    """The encoder with a head for labels or scores."""

    def config(self) -> BnbConfig:
        section = self.section
        if section.checkpoint is None and section.encoder is None:
            vocabulary = TokenizerVocabulary.of(self.codec.source)
            config = model_config(section, vocabulary, self.lengths.source)
        else:
            config = self._whole_config()
            # Shared halves have one depth, although a classifier has no decoder.
            cut_halves(config, section.encoder_layers, section.encoder_layers if config.tie_encoder_decoder else None)
        dropout = {
            field: getattr(section, name)
            for field, name in DROPOUT_NAMES.items()
            if section.checkpoint is None or name in section.model_fields_set
        }
        backbone_of(config.encoder).set_dropout(config.encoder, dropout)
        config.num_labels = self.task.num_outputs
        self.name_classes(config)
        self._refuse_misfits(config)
        return config

    def _whole_config(self) -> BnbConfig:
        """The configuration of the checkpoint that the section names, with all its layers."""
        section = self.section
        if section.checkpoint is None:
            return BnbConfig(encoder=read_bert_config(section.encoder))
        with checkpoint_errors(section.checkpoint, "BERT-NAR-BERT model"):
            return BnbConfig.from_pretrained(section.checkpoint)

    def empty(self, config: BnbConfig) -> nn.Module:
        return BnbForSequenceClassification(config)

    def build(self) -> nn.Module:
        section, config = self.section, self.config()
        if section.checkpoint is not None:
            whole, given = copy.deepcopy(config), self._whole_config()
            whole.encoder.num_hidden_layers = given.encoder.num_hidden_layers
            with checkpoint_errors(section.checkpoint, "BERT-NAR-BERT model"):
                model = BnbForSequenceClassification.from_pretrained(
                    section.checkpoint, config=whole, dtype=torch.float32
                )
            return model if config.taken_layers == given.taken_layers else shallow_model(model, config)
        model = BnbForSequenceClassification(config)
        if section.encoder is not None:
            model.load_bert(section.encoder)
        return model

    def load(self, directory: Path) -> nn.Module:
        with checkpoint_errors(directory, "classification model"):
            return BnbForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()

    def flops(self, config: BnbConfig, batch: PackedBatch) -> int:
        return classification_flops(config, batch.source_lengths)

    def predict(self, model: Any, batch: PackedBatch, device: torch.device) -> Prediction:
        output = model(**batch.model_inputs(device))
        return Prediction(float(output.loss_sum), output.logits.float().cpu().numpy())

    def _refuse_misfits(self, config: BnbConfig) -> None:
        positions, length = positions_of(config.encoder), self.lengths.source
        if length > positions:
            raise ConfigError(
                f"data.max_source_length {length}: the encoder has {positions} positions; set it to {positions}"
            )
        vocabulary = TokenizerVocabulary.of(self.codec.source)
        if config.encoder.vocab_size < vocabulary.vocab_size:
            raise DataError(
                f"model: its vocabulary has {config.encoder.vocab_size} tokens, but the tokenizer has"
                f" {vocabulary.vocab_size}; remove data.tokenizer, or give the checkpoint's own"
            )
        refuse_other_padding("model.encoder", config.encoder, vocabulary)


def _tokenizer_of(name: str) -> Path:
    """The path of the tokenizer of a directory, vocabulary file or hub checkpoint."""
    if Path(name).is_file():
        return Path(name)
    directory = tokenizer_directory(name)
    if directory is None:
        raise ConfigError(f"{name}: holds no tokenizer; give one with data.tokenizer")
    return directory
