"""Adapters of the baselines: autoregressive models for texts, and classifiers for labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bnb_ds.baselines import build
from bnb_ds.baselines.classifier import ClassifierModel
from bnb_ds.baselines.cost import classifier_flops, seq2seq_flops
from bnb_ds.baselines.seq2seq import AutoregressiveModel, BeamOptions
from bnb_ds.baselines.settings import (
    AutoregressiveSection,
    Bert2bertSection,
    ClassifierSection,
    Seq2SeqSection,
    TransformerSection,
)
from bnb_ds.baselines.tokenizers import read_tokenizer
from bnb_ds.data.batch import PackedBatch
from bnb_ds.errors import ConfigError
from bnb_ds.model.backbones.entries import BACKBONES, positions_of
from bnb_ds.systems.base import OneSlotPerToken, Prediction, System
from bnb_ds.tasks.codec import Codec, Frame
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.task import Task


class _TokenizersOfCheckpoints(System):
    """Uses the tokenizers that the recipe names, or the checkpoint's own."""

    @classmethod
    def load_codec(cls, directory: Path) -> Codec:
        return Codec.load(directory, lambda path: read_tokenizer(str(path)))

    @staticmethod
    def _codec(sources: str | None, targets: str | None) -> Codec:
        if sources is None:
            raise ConfigError("data.tokenizer: a model with random weights has no tokenizer; give the directory of one")
        source = read_tokenizer(sources)
        return Codec(source, source if targets in (None, sources) else read_tokenizer(targets))


class AutoregressiveSystem(_TokenizersOfCheckpoints):
    """A model that writes texts one token after the other."""

    section: AutoregressiveSection
    _config: Any = None

    def config(self) -> Any:
        if self._config is None:
            self._config = self._make_config()
            self._refuse_long(self._config)
        return self._config

    def _make_config(self) -> Any:
        raise NotImplementedError

    def _weights(self) -> Any:
        return build.model_of(self.config())

    def empty(self, config: Any) -> nn.Module:
        return self._wrapped(build.model_of(config))

    def build(self) -> nn.Module:
        model = self._weights()
        build.set_generation(model, self.section)
        return self._wrapped(model, label_smoothing=self.section.label_smoothing)

    def load(self, directory: Path) -> nn.Module:
        model = build.read_seq2seq(directory)
        self._config = model.config
        return self._wrapped(model)

    def load_config(self, directory: Path) -> Any:
        self._config = super().load_config(directory)
        return self._config

    def flops(self, config: Any, batch: PackedBatch) -> int:
        return seq2seq_flops(config, batch.source_lengths, batch.decoder_lengths)

    @property
    def target_rules(self) -> OneSlotPerToken:
        return OneSlotPerToken(uncounted=int(self._begins_with_start(self.config())))

    def predict(self, model: Any, batch: PackedBatch, device: torch.device) -> Prediction:
        """Decode greedily during training (``model`` is an engine), afterwards as ``generation_config.json`` says."""
        loss_sum = float(model(**batch.model_inputs(device)).loss_sum)
        return Prediction(loss_sum, self.write(model, self.rows(batch)))

    def write(self, model: Any, rows: list[list[int]], num_beams: int | None = None) -> list[np.ndarray]:
        """Decode sources as one batch; the outputs are int64 [n] each.

        Args:
            model: as in `predict`.
            rows: token ids of each source, with its special tokens.
            num_beams: replaces the model's own setting.
        """
        is_engine = hasattr(model, "module")
        plain: AutoregressiveModel = model.module if is_engine else model
        own = plain.model.generation_config
        options = BeamOptions(
            max_new_tokens=self.lengths.target - self._begins_with_start(plain.config),
            num_beams=num_beams or (1 if is_engine else own.num_beams or 1),
            length_penalty=1.0 if own.length_penalty is None else own.length_penalty,
            no_repeat_ngram_size=own.no_repeat_ngram_size or 0,
        )
        # With partitioned weights, every rank must continue until all ranks have finished.
        synchronised = is_engine and model.zero_optimization_stage() == 3
        outputs = plain.generate_rows(rows, options, synchronised=synchronised)
        return [np.array(output, np.int64) for output in outputs]

    @staticmethod
    def rows(batch: PackedBatch) -> list[list[int]]:
        """Token ids of each source of a batch."""
        return [row.tolist() for row in batch.input_ids.split(batch.source_lengths.tolist())]

    def _wrapped(self, model: Any, label_smoothing: float = 0.0) -> AutoregressiveModel:
        begins = self._begins_with_start(model.config)
        return AutoregressiveModel(model, begins_with_start=begins, label_smoothing=label_smoothing)

    def _begins_with_start(self, config: Any) -> bool:
        return Frame.of(self.codec.target, pair=False).before[:1] == (config.decoder_start_token_id,)

    def _refuse_long(self, config: Any) -> None:
        halves = (config.encoder, config.decoder) if hasattr(config, "encoder") else (config, config)
        for half, name in zip(halves, ("source", "target"), strict=True):
            positions, length = _positions(half), getattr(self.lengths, name)
            if positions is not None and length > positions:
                raise ConfigError(
                    f"data.max_{name}_length {length}: the model has {positions} positions; set it to {positions}"
                )


class Bert2bert(AutoregressiveSystem):
    """The paper's baseline: a BERT encoder and a BERT decoder."""

    kind = "bert2bert"
    section: Bert2bertSection

    @classmethod
    def make_codec(cls, task: Task, section: Bert2bertSection, data: TaskDataSection) -> Codec:
        return cls._codec(data.tokenizer or section.encoder, data.target_tokenizer or section.decoder)

    def _make_config(self) -> Any:
        return build.bert2bert_config(self.section, self.codec.source, self.codec.target)

    def _weights(self) -> Any:
        return build.build_bert2bert(self.section, self.config())


class Transformer(AutoregressiveSystem):
    """The paper's Transformer: six encoder and six decoder layers with random weights."""

    kind = "transformer"
    section: TransformerSection

    @classmethod
    def make_codec(cls, task: Task, section: TransformerSection, data: TaskDataSection) -> Codec:
        return cls._codec(data.tokenizer, data.target_tokenizer)

    def _make_config(self) -> Any:
        return build.transformer_config(self.section, self.codec.source, self.codec.target)


class Seq2SeqCheckpoint(AutoregressiveSystem):
    """Any encoder-decoder checkpoint of transformers, such as BART or BioBART."""

    kind = "seq2seq"
    section: Seq2SeqSection

    @classmethod
    def make_codec(cls, task: Task, section: Seq2SeqSection, data: TaskDataSection) -> Codec:
        return cls._codec(data.tokenizer or section.checkpoint, data.target_tokenizer)

    def _make_config(self) -> Any:
        return build.seq2seq_config(self.section, self.codec.source, self.codec.target)

    def _weights(self) -> Any:
        return build.read_seq2seq(self.section.checkpoint, self.config())


class CheckpointClassifier(_TokenizersOfCheckpoints):
    """BERT, another encoder, or OpenAI GPT, with a classification head."""

    kind = "classifier"
    section: ClassifierSection
    _config: Any = None

    @classmethod
    def make_codec(cls, task: Task, section: ClassifierSection, data: TaskDataSection) -> Codec:
        return cls._codec(data.tokenizer or section.checkpoint, None)

    def config(self) -> Any:
        if self._config is None:
            self._config = build.classifier_config(self.section, self.codec.source, self.task.num_outputs)
            self.name_classes(self._config)
            positions = _positions(self._config)
            if positions is not None and self.lengths.source > positions:
                raise ConfigError(
                    f"data.max_source_length {self.lengths.source}: the model has {positions} positions; set it to"
                    f" {positions}"
                )
        return self._config

    def empty(self, config: Any) -> nn.Module:
        return ClassifierModel(build.classifier_of(config))

    def build(self) -> nn.Module:
        return ClassifierModel(build.read_classifier(self.section.checkpoint, self.config()))

    def load(self, directory: Path) -> nn.Module:
        return ClassifierModel(build.read_classifier(directory))

    def flops(self, config: Any, batch: PackedBatch) -> int:
        return classifier_flops(config, batch.source_lengths)

    def predict(self, model: Any, batch: PackedBatch, device: torch.device) -> Prediction:
        output = model(**batch.model_inputs(device))
        return Prediction(float(output.loss_sum), output.logits.float().cpu().numpy())


def _positions(config: Any) -> int | None:
    """The most tokens of a sequence; None: there is no limit."""
    if config.model_type in BACKBONES:
        return positions_of(config)
    return getattr(config, "max_position_embeddings", None)
