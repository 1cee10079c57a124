"""What a downstream task is: a declaration, read by everything that trains on it or scores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["classification", "regression", "generation"]


@dataclass(frozen=True)
class HubData:
    """Where a task's rows are on the Hugging Face hub, as parquet."""

    name: str
    config: str | None = None
    #: our split -> the hub's
    splits: Mapping[str, str] = field(
        default_factory=lambda: {"train": "train", "validation": "validation", "test": "test"}
    )


@dataclass(frozen=True)
class Task:
    """A downstream task.

    A column is named by its place in a row: ``translation.en`` is the field ``en`` of the field ``translation``,
    ``answers.text.0`` the first of a list. A column that holds a list of strings is their text joined by spaces.
    """

    name: str
    #: as in the paper's tables
    title: str
    kind: Kind
    #: columns of the source; two of them are joined by the tokenizer's separator
    sources: tuple[str, ...]
    #: column of the target text, of the label, or of the score of a regression
    target: str
    #: what is computed of outputs and references, see :mod:`bnb_ds.evaluate.scoring`
    metrics: tuple[str, ...]
    #: the score, named as in the results, that a model is chosen by and that goes into tables; higher is better
    main_score: str
    hub: HubData | None = None
    #: names of the classes, in the order of their numbers
    labels: tuple[str, ...] = ()
    #: tokens of a source and of a target, special ones included; longer ones are cut
    max_source_length: int = 128
    max_target_length: int = 128
    #: what is cut of two columns that are too long together: the longer one, or the last
    cut: Literal["longest", "last"] = "longest"
    #: form of local JSON files: rows, or articles with paragraphs and questions as SQuAD has them
    form: Literal["rows", "squad"] = "rows"
    #: column that names a row; without it a row is named by a hash of its text
    id_column: str | None = None
    #: column with the name of the document that a row comes from, where splits are lists of documents
    document_column: str | None = None
    #: splits that are scored after training, the first chooses the model
    validation_splits: tuple[str, ...] = ("validation",)
    #: source and target are different languages, with a tokenizer each
    two_languages: bool = False

    @property
    def is_generation(self) -> bool:
        return self.kind == "generation"

    @property
    def num_outputs(self) -> int:
        """Outputs of a classification head; 1 for a regression."""
        return len(self.labels) if self.kind == "classification" else 1
