"""The teacher of a layer distillation (`bnb_ds.model.students.imitation`), as a recipe names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator
from torch import Tensor

from bnb_ds.config.section import Section
from bnb_ds.data.batch import PackedBatch
from bnb_ds.data.tokenization import tokenizer_hash
from bnb_ds.errors import ConfigError
from bnb_ds.generate.open_model import fingerprint
from bnb_ds.model.students.imitation import LayerTeacher, check_teacher, match_layers
from bnb_ds.model.students.layer_choice import HALVES
from bnb_ds.model.students.training_pass import TrainingPass
from bnb_ds.systems.base import System
from bnb_ds.systems.bnb import BnbGenerator
from bnb_ds.systems.model_dir import best_model, load_system

Layers = list[Annotated[int, Field(ge=0)]]


class TaughtLayers(Section):
    """Layers of the teacher, counted from 0: one for each layer of the student, in order."""

    #: for the encoder's layers; default: evenly spaced, the last for the last
    encoder: Layers | None = None
    #: for the decoder's layers; default: evenly spaced, the last for the last
    decoder: Layers | None = None


class LayerDistillationSection(Section):
    """Learn from a trained model of the same task, layer by layer and position by position.

    Teacher and student open the same positions for a source, and have the same tokenizers. A shallow student may begin
    with layers of the teacher: ``model.checkpoint`` with ``model.decoder_layers``.
    """

    #: the teacher: a finished run, its ``best`` directory, or an export
    teacher: str
    #: weight of the mean squared distance between the outputs of matched layers; 0 for a teacher of another width
    hidden: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    #: weight of the mean KL divergence from the teacher's distribution at a position to the student's
    logits: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    #: which layers the student's layers learn from
    layers: TaughtLayers = TaughtLayers()

    @model_validator(mode="after")
    def _something_is_learnt(self) -> LayerDistillationSection:
        if not self.hidden and not self.logits:
            raise ValueError("hidden 0 and logits 0: nothing would be learnt from the teacher; raise one of them")
        return self


@dataclass(frozen=True)
class Teaching:
    """A `bnb_ds.train.objectives.Term`: what a student learns from its teacher."""

    teacher: LayerTeacher

    def of(self, batch: PackedBatch) -> Callable[[TrainingPass], Tensor]:
        return self.teacher


@dataclass(frozen=True)
class MatchedTeacher:
    """A teacher that fits its student. Its weights are not read yet.

    Attributes:
        section: of the recipe.
        directory: its model.
        system: the teacher's.
        layers: half -> for each layer of the student, the teacher's layer that it learns from.
    """

    section: LayerDistillationSection
    directory: Path
    system: BnbGenerator
    layers: dict[str, list[int]]

    def fingerprint(self) -> str:
        """A hash of its files; a run that is resumed needs the same."""
        return fingerprint(self.directory)

    def load(self) -> Teaching:
        """Read its weights."""
        model = self.system.load(self.directory)
        return Teaching(LayerTeacher(model, self.layers, hidden=self.section.hidden, logits=self.section.logits))

    def line(self) -> str:
        """A line for the user: the teacher, and which layers are matched."""
        matched = ", ".join(f"{half} layers {' '.join(map(str, numbers))}" for half, numbers in self.layers.items())
        weights = f"hidden {self.section.hidden:g}" + (f" ({matched})" if matched else "")
        return f"teacher      {self.section.teacher}: {weights}, logits {self.section.logits:g}"


def match_teacher(section: LayerDistillationSection, student: System) -> MatchedTeacher:
    """Check that a student can learn from its teacher, and match their layers. No weights are read.

    Raises:
        ConfigError: student or teacher is a kind of model that has no such layers; or they do not fit together.
        CheckpointError: the teacher cannot be read.
    """
    field, directory = "layer_distillation", best_model(Path(section.teacher))
    if not isinstance(student, BnbGenerator) or student.has_own_noise:
        raise ConfigError(
            f"{field}: model.kind {student.kind} for task {student.task.name} has no positions that a teacher sees "
            f"too; remove {field}"
        )
    teacher = load_system(directory)
    if not isinstance(teacher, BnbGenerator):
        raise ConfigError(
            f"{field}.teacher {section.teacher}: is of kind {teacher.kind}, which writes one token after the other; use"
            " `bnb-ds distill` with it, or name a model that writes in parallel"
        )
    if teacher.task.name != student.task.name:
        raise ConfigError(
            f"{field}.teacher {section.teacher}: was trained for task {teacher.task.name}; name one of the same task"
        )
    for half in ("source", "target"):
        if len({tokenizer_hash(getattr(system.codec, half)) for system in (student, teacher)}) > 1:
            raise ConfigError(
                f"{field}.teacher {section.teacher}: has another tokenizer of the {half}s; give the teacher's to the"
                " student, with data.tokenizer or data.target_tokenizer"
            )
    config, their_config = student.config(), teacher.load_config(directory)
    try:
        check_teacher(config, their_config, hidden=section.hidden)
        chosen = {half: getattr(section.layers, half) for half in HALVES}
        layers = match_layers(config, their_config, chosen) if section.hidden else {}
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}") from None
    return MatchedTeacher(section, directory, teacher, layers)
