"""The ``data`` section of fine-tuning recipes: the source of a task's rows, and how long they may be."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bnb_ds.config.section import Section
from bnb_ds.tasks.romanian import Spelling
from bnb_ds.tasks.task import Cut

Split = str


class ParallelFiles(Section):
    """Two text files whose lines form pairs."""

    #: file with one source a line
    source: str
    #: file with one target a line
    target: str


class SplitSection(Section):
    """Fractions of ``train`` to set aside; a seeded hash of each row's id chooses the rows."""

    #: fraction of ``train`` that becomes the validation split
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    #: fraction of ``train`` that becomes the test split
    test: Annotated[float, Field(ge=0, lt=1)] = 0.0
    #: of the choice
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _something_is_left(self) -> SplitSection:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} and test {self.test} leave no rows for training")
        return self


class RomanianSection(Section):
    """How Romanian is spelled in translations (`bnb_ds.tasks.romanian`)."""

    #: Romanian that the model reads, in training and later: comma: ş and ţ with a cedilla become ș and ț with a comma
    #: below; plain: then ă â î ș ț become a a i s t; none: as in the data
    source: Spelling = "none"
    #: the same for what it learns to write
    target: Spelling = "none"
    #: the same for outputs and references when they are scored
    references: Spelling = "none"


class TaskDataSection(Section):
    """The rows: from local files if any are named, else from the task's hub data set.

    With files for some splits, the others come from the hub if ``hub`` is set.
    """

    #: file of the training rows, or two text files whose lines form pairs; default: the task's hub data set
    train: str | ParallelFiles | None = None
    #: the same for the rows that choose the best model
    validation: str | ParallelFiles | None = None
    #: the same for the rows that are never looked at in training
    test: str | ParallelFiles | None = None
    #: the first validation split of MNLI
    validation_matched: str | None = None
    #: the second validation split of MNLI
    validation_mismatched: str | None = None
    #: replaces the task's hub name; may be a local directory with the layout of a hub data set. Beside files of some
    #: splits, the others come from there
    hub: str | None = None
    #: column of the task -> its name in the files (a list if the files differ), or its number in files without a
    #: header: ``{sentence: 3, label: 1}``
    columns: Annotated[dict[str, str | int | list[str]], Field(default_factory=dict)]
    #: names of the classes in their order, for ``task: classification``; default: those of the training rows
    labels: list[str] | None = None
    #: split -> file with the names of its documents, one per line (``doclist-*.txt`` of Du et al., 2017)
    documents: Annotated[dict[Split, str], Field(default_factory=dict)]
    #: fractions of ``train`` to set aside for splits without their own files
    split: SplitSection | None = None
    #: leave out rows that cannot be read: missing fields or columns, an empty source or target, no label or an unknown
    #: one; they are counted by reason. Otherwise such a row is an error
    skip_bad_rows: bool = False
    #: most tokens of a source, special tokens included; default: the task's
    max_source_length: Annotated[int, Field(ge=3)] | None = None
    #: most tokens of a target, special tokens included; default: the task's
    max_target_length: Annotated[int, Field(ge=3)] | None = None
    #: how two source texts are cut that are too long together. longest: the longer one, until both are equally long;
    #: last: the second one's end; around: all of the second but what surrounds its first mention of the first; default:
    #: the task's
    cut: Cut | None = None
    #: read only the first rows for training, for quick trials
    max_train_samples: Annotated[int, Field(gt=0)] | None = None
    #: the same for validation
    max_validation_samples: Annotated[int, Field(gt=0)] | None = None
    #: the same for the test split
    max_test_samples: Annotated[int, Field(gt=0)] | None = None
    #: tokenizer directory of the sources; default: the tokenizer of the model's checkpoint
    tokenizer: str | None = None
    #: tokenizer directory of the targets; default: that of the sources, or of the decoder's checkpoint
    target_tokenizer: str | None = None
    #: how spaces of text targets are kept with a BERT tokenizer. ``learnt``: the ids are the tokenizer's own, and the
    #: run learns from its training targets where spaces stand. ``pieces``: the ids say it themselves, because a mark
    #: inside a word becomes a continuing piece (``Brazil ##' ##s``)
    target_spacing: Literal["learnt", "pieces"] = "learnt"
    #: how Romanian is spelled, for translations from or into it; default: as in the data
    romanian: RomanianSection | None = None
    #: directory for tokenised rows; their names are hashes of their content
    cache_dir: str = "work/cache/tasks"

    @field_validator("labels", mode="before")
    @classmethod
    def _names_of_classes(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        for name in value:
            if isinstance(name, bool):
                raise ValueError(f"YAML reads {'yes' if name else 'no'} as {name}: put the names in quotes")
        names = [str(name) if isinstance(name, int | float) else name for name in value]
        if len(names) < 2 or len({str(name) for name in names}) < len(names):
            raise ValueError("give the names of two or more classes, each once")
        return names

    @model_validator(mode="after")
    def _one_origin_for_each_split(self) -> TaskDataSection:
        for name in ("validation", "test"):
            if self.split is not None and getattr(self.split, name) > 0 and getattr(self, name) is not None:
                raise ValueError(
                    f"{name} names a file, and split.{name} {getattr(self.split, name)} sets training rows aside for"
                    f" the same split, which nothing would read; remove one of them (split.{name}=0)"
                )
        return self

    def max_samples(self, split: Split) -> int | None:
        """Most rows to read of a split; None: all."""
        return getattr(self, f"max_{split.partition('_')[0]}_samples", None)
