"""What the launcher asks of a kind of model: how it is made, what it is fed, how its output is read.

Shapes: B sequences of a batch, N source tokens and M target tokens of all of them together.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig

from bnb_ds.common.files import write_atomic
from bnb_ds.common.hub import checkpoint_errors
from bnb_ds.config.sections import Section
from bnb_ds.data.batch import PackedBatch, TargetRules
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.task import Task
from bnb_ds.tasks.tokenised import Lengths
from bnb_ds.train.objectives import Objective, Reconstruction

#: of a model directory: what the model was made for
TASK_FILE = "task.json"


@dataclass(frozen=True)
class Prediction:
    """What a model makes of a batch.

    Attributes:
        loss_sum: nats (of a regression: squared errors) added up; divided by the batch's ``loss_count``.
        outputs: for texts int64 [n] token ids of each sample; for labels float32 [B, C].
    """

    loss_sum: float
    outputs: list[np.ndarray] | np.ndarray


@dataclass(frozen=True)
class OneSlotPerToken:
    """The `bnb_ds.data.batch.TargetRules` of a model that writes token by token.

    Attributes:
        uncounted: tokens of each target that are given to the model, not predicted.
    """

    uncounted: int = 0

    def slots(self, source_lengths: np.ndarray, target_lengths: np.ndarray) -> np.ndarray:
        """int64 [B], one for each target token."""
        return target_lengths

    def fits(self, targets: np.ndarray, cu_seqlens: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """bool [B], all of them."""
        return np.ones(slots.size, dtype=bool)

    def loss_count(self, num_targets: int, num_sequences: int) -> int:
        """Predicted tokens."""
        return num_targets - num_sequences * self.uncounted


class System(ABC):
    """A kind of model, for one task.

    Subclasses are listed in `bnb_ds.systems.kinds` and their sections in `bnb_ds.systems.kinds.ModelChoice`.

    Args:
        task: what the model is for.
        lengths: longest source and target.
        codec: tokenizers.
        section: the recipe's ``model``; None for a model that is loaded.
    """

    #: ``model.kind`` of a recipe
    kind: ClassVar[str]

    def __init__(self, task: Task, lengths: Lengths, codec: Codec, section: Section | None = None) -> None:
        self.task = task
        self.lengths = lengths
        self.codec = codec
        self.section = section

    @classmethod
    @abstractmethod
    def make_codec(cls, task: Task, section: Any, data: TaskDataSection) -> Codec:
        """The tokenizers of a recipe: ``data.tokenizer`` and ``data.target_tokenizer``, or the checkpoint's own.

        Raises:
            ConfigError, DataError: there are none, or they do not fit the checkpoint.
        """

    @classmethod
    @abstractmethod
    def load_codec(cls, directory: Path) -> Codec:
        """The tokenizers that :meth:`save_files` wrote."""

    @abstractmethod
    def config(self) -> Any:
        """The Hugging Face configuration of :meth:`build`, without making any weights.

        Raises:
            ConfigError: source or target lengths beyond the model's positions.
            CheckpointError: the checkpoint cannot be read.
        """

    @abstractmethod
    def empty(self, config: Any) -> nn.Module:
        """The model of a configuration with weights that mean nothing."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The model to train, in float32; random weights come from torch's global generator."""

    @abstractmethod
    def load(self, directory: Path) -> nn.Module:
        """A model that :func:`save_model` wrote, in evaluation mode on the CPU.

        Raises:
            CheckpointError: it cannot be read.
        """

    @abstractmethod
    def flops(self, config: Any, batch: PackedBatch) -> int:
        """Matrix FLOPs of one forward pass on real tokens."""

    @abstractmethod
    def predict(self, model: Any, batch: PackedBatch, device: torch.device) -> Prediction:
        """Score a batch and write its outputs; under `torch.no_grad`, in evaluation mode.

        Args:
            model: a DeepSpeed engine (``engine.module`` is the model) or the model itself. All ranks call it at the
                same time: weights that ZeRO 3 has taken apart are gathered in forward passes of the whole model.
        """

    def load_config(self, directory: Path) -> Any:
        """The configuration in a model directory, of the class that `empty` takes.

        Raises:
            CheckpointError: it cannot be read.
        """
        with checkpoint_errors(directory, "model"):
            return AutoConfig.from_pretrained(directory)

    @property
    def objective(self) -> Objective:
        """The loss of a micro batch; default: ``loss_sum`` of the model's output over the packed batch."""
        return Reconstruction()

    def name_classes(self, config: Any) -> None:
        """Tell the configuration of a classifier what its classes are called."""
        if self.task.labels:
            config.id2label = dict(enumerate(self.task.labels))
            config.label2id = {name: number for number, name in config.id2label.items()}

    @property
    def target_rules(self) -> TargetRules:
        """Slots, fit and count of targets that are texts; default: those of a model that writes token by token."""
        return OneSlotPerToken()

    def save_files(self, config: Any, directory: Path) -> None:
        """Write what loading needs besides the weights: configuration, tokenizers, task."""
        directory.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(directory)
        self.codec.save(directory)
        made_for = {"kind": self.kind, "task": self.task.name, "lengths": vars(self.lengths)}
        write_atomic(directory / TASK_FILE, json.dumps(made_for, indent=1) + "\n")
