"""The declaration of a downstream task, which training, evaluation and generation read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["classification", "regression", "generation"]
#: which of two source texts gives way if they are too long together: the longer one, until both are equally long; the
#: last one's end; or all of the last one but what surrounds the place where it first contains the first
Cut = Literal["longest", "last", "around"]


@dataclass(frozen=True)
class HubData:
    """The data set of a task on the Hugging Face hub."""

    name: str
    config: str | None = None
    #: our name of a split -> its name on the hub
    splits: Mapping[str, str] = field(
        default_factory=lambda: {"train": "train", "validation": "validation", "test": "test"}
    )


@dataclass(frozen=True)
class Task:
    """A downstream task.

    The name of a column is a path in a row: ``translation.en`` is the field ``en`` of the field ``translation``, and
    ``answers.text.0`` is the first element of a list. A list of strings is joined by spaces.
    """

    name: str
    #: the task's name in the paper's tables
    title: str
    kind: Kind
    #: one or two source columns; the tokenizer's separator joins two
    sources: tuple[str, ...]
    #: column of the target text, of the label, or of a regression's score
    target: str
    #: metrics to compute, see :mod:`bnb_ds.evaluate.scoring`
    metrics: tuple[str, ...]
    #: name (as in the results) of the score that selects the best model and appears in tables; higher is better
    main_score: str
    hub: HubData | None = None
    #: names of the classes, ordered by class number
    labels: tuple[str, ...] = ()
    #: most tokens of a source and of a target, special tokens included; longer ones are cut
    max_source_length: int = 128
    max_target_length: int = 128
    #: how two source columns are cut
    cut: Cut = "longest"
    #: form of local JSON files: rows, or SQuAD's articles with paragraphs and questions
    form: Literal["rows", "squad"] = "rows"
    #: column with the id of a row; without it, the id is a hash of the row's text
    id_column: str | None = None
    #: column with the name of a row's document, for tasks whose splits are lists of documents
    document_column: str | None = None
    #: splits to score; the first one selects the best model
    validation_splits: tuple[str, ...] = ("validation",)
    #: source and target are different languages with separate tokenizers
    two_languages: bool = False
    #: ISO 639-1 codes of the languages of the data
    languages: tuple[str, ...] = ()
    #: the hub's name for this kind of task, where it is not that of all tasks of its ``kind``
    hub_task: str | None = None
    #: of a user's own rows: texts and classes are those of the recipe or the data, and labels are names, never numbers
    is_own: bool = False

    @property
    def is_generation(self) -> bool:
        return self.kind == "generation"

    @property
    def pipeline_tag(self) -> str:
        """The hub's name for this kind of task."""
        return self.hub_task or ("text-generation" if self.is_generation else "text-classification")

    @property
    def num_outputs(self) -> int:
        """Number of outputs of the classification head; 1 for a regression."""
        return len(self.labels) if self.kind == "classification" else 1
