"""The interface of a kind of model: building it, feeding it batches and reading its outputs.

Shapes: B sequences of a batch; N source tokens and M target tokens, each summed over the batch.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig

from bnb_ds.common.files import write_atomic
from bnb_ds.common.hub import checkpoint_errors
from bnb_ds.config.section import Section
from bnb_ds.data.batch import PackedBatch, TargetRules
from bnb_ds.errors import ConfigError
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.own_tasks import definition
from bnb_ds.tasks.romanian import Spelling, respell
from bnb_ds.tasks.task import Task
from bnb_ds.tasks.text_lengths import Lengths
from bnb_ds.train.objectives import PLAIN, Objective, ObjectiveSettings, Reconstruction, Term

#: file in a model directory that records the kind of model, the task and the lengths
TASK_FILE = "task.json"


@dataclass(frozen=True)
class Prediction:
    """The loss and the outputs of a model for one batch.

    Attributes:
        loss_sum: sum of losses in nats (for a regression: of squared errors); the mean divides it by ``loss_count``.
        outputs: for texts, int64 [n] token ids of each sample; for labels, float32 [B, C] logits.
    """

    loss_sum: float
    outputs: list[np.ndarray] | np.ndarray


@dataclass(frozen=True)
class OneSlotPerToken:
    """The `bnb_ds.data.batch.TargetRules` of a model that writes one token after the other.

    Attributes:
        uncounted: number of tokens of each target that the model is given and does not predict.
    """

    uncounted: int = 0

    def slots(self, source_lengths: np.ndarray, target_lengths: np.ndarray) -> np.ndarray:
        """int64 [B], as many slots as target tokens."""
        return target_lengths

    def fits(
        self, targets: np.ndarray, cu_seqlens: np.ndarray, slots: np.ndarray, source_lengths: np.ndarray
    ) -> np.ndarray:
        """bool [B]; every target fits."""
        return np.ones(slots.size, dtype=bool)

    def has_length(self, source_lengths: np.ndarray, target_lengths: np.ndarray) -> np.ndarray:
        """bool [B]; lengths are not predicted."""
        return np.ones(target_lengths.size, dtype=bool)

    def loss_count(self, num_targets: int, num_sequences: int) -> int:
        """The number of predicted tokens."""
        return num_targets - num_sequences * self.uncounted


class System(ABC):
    """A kind of model, for one task.

    `bnb_ds.systems.kinds` lists the subclasses (``GENERATORS``, ``CLASSIFIERS``) and their sections (``ModelChoice``).

    Args:
        task: the task of the model.
        lengths: longest source and target.
        codec: the tokenizers.
        section: the recipe's ``model`` section; None for a model that is loaded.
    """

    #: ``model.kind`` of a recipe
    kind: ClassVar[str]
    #: outputs have the true length of their targets; only for models that predict lengths
    oracle_length: bool = False

    def __init__(self, task: Task, lengths: Lengths, codec: Codec, section: Section | None = None) -> None:
        self.task = task
        self.lengths = lengths
        self.codec = codec
        self.section = section
        #: fields of `bnb_ds.decoding.options.DecodeOptions` that replace the model's own; only for BERT-NAR-BERTs
        self.decoding: dict[str, Any] = {}
        #: how Romanian is spelled in outputs when they are scored
        self.scored_spelling: Spelling = "none"

    @classmethod
    @abstractmethod
    def make_codec(cls, task: Task, section: Any, data: TaskDataSection) -> Codec:
        """Load the tokenizers of a recipe: ``data.tokenizer`` and ``data.target_tokenizer``, or the checkpoint's own.

        Raises:
            ConfigError, DataError: no tokenizer is found, or it does not fit the checkpoint.
        """

    @classmethod
    @abstractmethod
    def load_codec(cls, directory: Path) -> Codec:
        """Load the tokenizers that :meth:`save_files` wrote."""

    @abstractmethod
    def config(self) -> Any:
        """The Hugging Face configuration of the model that :meth:`build` makes; no weights are made.

        Raises:
            ConfigError: the source or target length exceeds the model's positions.
            CheckpointError: the checkpoint cannot be read.
        """

    @abstractmethod
    def empty(self, config: Any) -> nn.Module:
        """Make the model of a configuration; its weights are to be overwritten."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Make the model to train, in float32. Random weights come from torch's global generator."""

    @abstractmethod
    def load(self, directory: Path) -> nn.Module:
        """Load the model of a directory that holds weights and `save_files`, in evaluation mode on the CPU.

        Raises:
            CheckpointError: it cannot be read.
        """

    def check_new(self) -> None:  # noqa: B027 - most kinds have nothing to refuse
        """Check a model that a new run begins. A run that is resumed goes on with the settings it has.

        Raises:
            ConfigError: settings that a model of this kind should no longer begin with.
        """

    @abstractmethod
    def flops(self, config: Any, batch: PackedBatch) -> int:
        """Matrix FLOPs of one forward pass on real tokens."""

    @abstractmethod
    def predict(self, model: Any, batch: PackedBatch, device: torch.device) -> Prediction:
        """Compute the loss and the outputs of a batch, under `torch.no_grad` and in evaluation mode.

        Args:
            model: a DeepSpeed engine (``engine.module`` is the model) or the model itself. All ranks must call it
                together, because ZeRO 3 gathers partitioned weights in each forward pass of the whole model.
        """

    def load_config(self, directory: Path) -> Any:
        """Load the configuration of a model directory, as the class that `empty` takes.

        Raises:
            CheckpointError: it cannot be read.
        """
        with checkpoint_errors(directory, "model"):
            return AutoConfig.from_pretrained(directory, trust_remote_code=False)

    def objective(self, settings: ObjectiveSettings = PLAIN) -> Objective:
        """The loss of a micro batch. The default is ``loss_sum`` of the model's output for the packed batch.

        Args:
            settings: what the recipe asks for.

        Raises:
            ConfigError: the model has no glancing, no such predictions, or no loss of such n-grams.
        """
        for name, value in vars(settings).items():
            if value is not None:
                raise ConfigError(f"{name}: model.kind {self.kind} has none for task {self.task.name}; remove {name}")
        return Reconstruction()

    def terms(self, model: Any) -> list[Term]:
        """Losses that are added to `objective`'s in training. The default is none.

        Args:
            model: as `build` made it, before a checkpoint is loaded into it.
        """
        return []

    def name_classes(self, config: Any) -> None:
        """Write the names of the classes into the configuration of a classifier."""
        if self.task.labels:
            config.id2label = dict(enumerate(self.task.labels))
            config.label2id = {name: number for number, name in config.id2label.items()}

    def use_romanian(self, data: TaskDataSection) -> None:
        """Let texts be spelled as ``data.romanian`` says.

        Raises:
            ConfigError: the task is no translation from or into Romanian.
        """
        section = data.romanian
        if section is None:
            return
        if not self.task.two_languages or "ro" not in (self.task.languages or ("ro",)):
            raise ConfigError(
                f"data.romanian: task {self.task.name} is no translation from or into Romanian; remove it"
            )
        self.codec.spelling = {"source": section.source, "target": section.target}
        self.scored_spelling = section.references

    def texts(self, outputs: Sequence[Iterable[int]]) -> list[str]:
        """Outputs as texts, each on one line, as they are scored."""
        return [respell(text, self.scored_spelling) for text in self.codec.decode(outputs)]

    @property
    def target_rules(self) -> TargetRules:
        """Slots, fit and count of text targets. The default suits models that write one token after the other."""
        return OneSlotPerToken()

    def save_files(self, config: Any, directory: Path) -> None:
        """Write the files that loading needs besides the weights: configuration, tokenizers and task."""
        directory.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(directory)
        self.codec.save(directory)
        made_for = {"kind": self.kind, "task": self.task.name, "lengths": vars(self.lengths), **definition(self.task)}
        write_atomic(directory / TASK_FILE, json.dumps(made_for, indent=1) + "\n")
