"""The ``data`` section of fine-tuning recipes: where a task's rows come from and how they are cut."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from bnb_ds.config.sections import Section

Split = str


class ParallelFiles(Section):
    """Two text files whose lines belong together."""

    source: str
    target: str


class SplitSection(Section):
    """Parts of ``train`` that are set aside, chosen by a seeded hash of each row's id."""

    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    test: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _something_is_left(self) -> SplitSection:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} and test {self.test} leave nothing to train on")
        return self


class TaskDataSection(Section):
    """Rows from the task's hub data set, or from local files where any are named."""

    train: str | ParallelFiles | None = None
    validation: str | ParallelFiles | None = None
    test: str | ParallelFiles | None = None
    #: of MNLI, whose two validation splits have names of their own
    validation_matched: str | None = None
    validation_mismatched: str | None = None
    #: takes the place of the task's hub name; or a local directory in the layout of a hub data set
    hub: str | None = None
    #: a column of the task -> what the files call it, several names if files differ, or its number where they have no
    #: header: ``{sentence: 3, label: 1}``
    columns: Annotated[dict[str, str | int | list[str]], Field(default_factory=dict)]
    #: split -> file with the names of its documents, one a line (``doclist-*.txt`` of Du et al., 2017)
    documents: Annotated[dict[Split, str], Field(default_factory=dict)]
    #: parts of ``train`` to set aside where there are no files of their own
    split: SplitSection | None = None
    #: leave out rows with an empty source or target or with missing fields, which are otherwise errors
    skip_bad_rows: bool = False
    #: tokens, special ones included; default: the task's
    max_source_length: Annotated[int, Field(ge=3)] | None = None
    max_target_length: Annotated[int, Field(ge=3)] | None = None
    #: rows of a split, the first ones; for trying things out
    max_train_samples: Annotated[int, Field(gt=0)] | None = None
    max_validation_samples: Annotated[int, Field(gt=0)] | None = None
    max_test_samples: Annotated[int, Field(gt=0)] | None = None
    #: directories of tokenizers; default: those of the model's checkpoint
    tokenizer: str | None = None
    target_tokenizer: str | None = None
    #: tokenised rows are kept here, under a name that follows from their content
    cache_dir: str = "work/cache/tasks"

    def max_samples(self, split: Split) -> int | None:
        """Rows to read of a split."""
        return getattr(self, f"max_{split.partition('_')[0]}_samples", None)
