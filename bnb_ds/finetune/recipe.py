"""The recipe of a fine-tuning run. The sections shared with pre-training are in :mod:`bnb_ds.config.sections`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from bnb_ds.config.parameters_section import ParametersSection
from bnb_ds.config.section import Section
from bnb_ds.config.sections import TrainingRecipe
from bnb_ds.errors import nearest
from bnb_ds.finetune.layer_distillation import LayerDistillationSection
from bnb_ds.systems.kinds import ModelChoice
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.registry import TASKS
from bnb_ds.tasks.task import Task


class FinetuneIntervals(Section):
    """How often a run logs, evaluates and saves, in steps."""

    #: steps between lines of the log
    log_steps: Annotated[int, Field(gt=0)] = 10
    #: steps between evaluations, each with a checkpoint; default: one epoch
    eval_steps: Annotated[int, Field(gt=0)] | None = None
    #: steps between further checkpoints; default: only evaluations save one
    checkpoint_steps: Annotated[int, Field(gt=0)] | None = None
    #: newest checkpoints kept on disk; the best one is kept as well
    keep_checkpoints: Annotated[int, Field(gt=0)] = 1
    #: samples per batch and rank at evaluations
    eval_batch_size: Annotated[int, Field(gt=0)] = 32
    #: outputs shown as text at each evaluation
    outputs: Annotated[int, Field(ge=0)] = 4
    #: hash and publish checkpoints in the background, while training continues
    background_checkpoints: bool = True


class SelectionSection(Section):
    """How the best checkpoint is selected, and when the run ends early."""

    #: split whose score selects the checkpoint; a test split is refused
    split: str = "validation"
    #: a score of the task, or ``loss``; default: the task's main score
    score: str | None = None
    #: end the run after this many evaluations without a better score; default: train to the last step
    patience: Annotated[int, Field(gt=0)] | None = None

    @field_validator("split")
    @classmethod
    def _not_test(cls, split: str) -> str:
        if split.startswith("test"):
            raise ValueError(f"{split!r}: choosing a model on a test split is refused; name a validation split")
        return split


class FinetuneRecipe(ParametersSection, TrainingRecipe):
    """The recipe of a fine-tuning run."""

    #: name of a task; :mod:`bnb_ds.tasks` lists them
    task: str
    model: ModelChoice
    data: Annotated[TaskDataSection, Field(default_factory=TaskDataSection)]
    #: the loss is 1 minus the expected matches of n-grams of this size: a second phase, for a model that was trained on
    #: its nats; CTC: 1 or 2
    ngram_size: Annotated[int, Field(ge=1, le=4)] | None = None
    #: learn from a trained model layer by layer, beside the targets; default: from the targets alone
    layer_distillation: LayerDistillationSection | None = None
    selection: SelectionSection = SelectionSection()
    intervals: FinetuneIntervals = FinetuneIntervals()

    @property
    def declared_task(self) -> Task:
        return TASKS[self.task]

    @field_validator("task")
    @classmethod
    def _known_task(cls, name: str) -> str:
        if name not in TASKS:
            raise ValueError(f"unknown task {name!r}: {nearest(name, TASKS)}")
        return name

    @model_validator(mode="after")
    def _second_phase_has_a_first(self) -> FinetuneRecipe:
        if self.ngram_size is not None and getattr(self.model, "checkpoint", None) is None:
            raise ValueError("ngram_size: such a phase begins with a trained model; name it with model.checkpoint")
        return self

    @model_validator(mode="after")
    def _what_stays_was_trained(self) -> FinetuneRecipe:
        model = self.model
        begins = any(getattr(model, name, None) is not None for name in ("checkpoint", "encoder", "decoder"))
        for key, given in (("lora", self.lora), ("freeze", self.freeze)):
            if given and not begins:
                raise ValueError(
                    f"{key}: model.kind {model.kind} begins with random weights here, which would stay so; remove"
                    f" {key}, or begin with a checkpoint"
                )
        return self

    @model_validator(mode="after")
    def _nothing_is_chosen_on_test(self) -> FinetuneRecipe:
        data, lists = self.data, self.data.documents
        sharing = [name for name in ("validation", "train") if data.test and getattr(data, name) == data.test]
        # Lists of documents divide one file; that they have none in common is seen when they are read.
        if any(lists.get("test") is None or lists.get(name) in (None, lists["test"]) for name in sharing):
            raise ValueError(
                f"data.test {data.test}: is also data.validation or data.train; name a file that holds only test data,"
                " or a list for each of these splits in data.documents"
            )
        return self

    @model_validator(mode="after")
    def _rows_set_aside_are_read(self) -> FinetuneRecipe:
        splits = self.declared_task.validation_splits
        if self.data.split is not None and self.data.split.validation and "validation" not in splits:
            raise ValueError(
                f"data.split.validation {self.data.split.validation}: {self.task} is scored on {' and '.join(splits)},"
                " so nothing would read the rows set aside; remove it, and name files for those splits"
            )
        return self

    @model_validator(mode="after")
    def _samples_fit_micro_batches(self) -> FinetuneRecipe:
        longest = self.data.max_source_length or self.declared_task.max_source_length
        budget = self.loader.micro_batch_tokens
        if budget is not None and budget < longest:
            raise ValueError(
                f"loader.micro_batch_tokens {budget}: a source can have {longest} tokens; give at least {longest}"
            )
        return self
