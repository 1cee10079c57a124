"""The ``data`` section of fine-tuning recipes: the source of a task's rows, and how long they may be."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from bnb_ds.config.sections import Section

Split = str


class ParallelFiles(Section):
    """Two text files whose lines form pairs."""

    source: str
    target: str


class SplitSection(Section):
    """Fractions of ``train`` to set aside; a seeded hash of each row's id chooses the rows."""

    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    test: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _something_is_left(self) -> SplitSection:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} and test {self.test} leave no rows for training")
        return self


class TaskDataSection(Section):
    """The rows: from local files if any are named, else from the task's hub data set."""

    train: str | ParallelFiles | None = None
    validation: str | ParallelFiles | None = None
    test: str | ParallelFiles | None = None
    #: the two validation splits of MNLI
    validation_matched: str | None = None
    validation_mismatched: str | None = None
    #: replaces the task's hub name; may be a local directory with the layout of a hub data set
    hub: str | None = None
    #: column of the task -> its name in the files (a list if the files differ), or its number in files without a
    #: header: ``{sentence: 3, label: 1}``
    columns: Annotated[dict[str, str | int | list[str]], Field(default_factory=dict)]
    #: split -> file with the names of its documents, one per line (``doclist-*.txt`` of Du et al., 2017)
    documents: Annotated[dict[Split, str], Field(default_factory=dict)]
    #: fractions of ``train`` to set aside for splits without their own files
    split: SplitSection | None = None
    #: skip rows with missing fields or an empty source or target; otherwise such a row is an error
    skip_bad_rows: bool = False
    #: most tokens, special tokens included; default: the task's
    max_source_length: Annotated[int, Field(ge=3)] | None = None
    max_target_length: Annotated[int, Field(ge=3)] | None = None
    #: read only the first rows of a split, for quick trials
    max_train_samples: Annotated[int, Field(gt=0)] | None = None
    max_validation_samples: Annotated[int, Field(gt=0)] | None = None
    max_test_samples: Annotated[int, Field(gt=0)] | None = None
    #: tokenizer directories; default: the tokenizers of the model's checkpoint
    tokenizer: str | None = None
    target_tokenizer: str | None = None
    #: directory for tokenised rows; their names are hashes of their content
    cache_dir: str = "work/cache/tasks"

    def max_samples(self, split: Split) -> int | None:
        """Most rows to read of a split; None: all."""
        return getattr(self, f"max_{split.partition('_')[0]}_samples", None)
