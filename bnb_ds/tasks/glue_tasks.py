"""The GLUE tasks (Wang et al., 2019) and their metrics, as in the paper's Table 1."""

from __future__ import annotations

from bnb_ds.tasks.task import HubData, Task

_HUB = "nyu-mll/glue"
_YES_NO = ("not_entailment", "entailment")


def _glue(
    name: str, title: str, sources: tuple[str, ...], main_score: str, labels: tuple[str, ...], metrics: tuple[str, ...]
) -> Task:
    return Task(
        name=name,
        title=title,
        kind="classification" if labels else "regression",
        sources=sources,
        target="label",
        metrics=metrics,
        main_score=main_score,
        hub=HubData(_HUB, name),
        labels=labels,
        id_column="idx",
        languages=("en",),
    )


_MNLI_SPLITS = ("validation_matched", "validation_mismatched")

GLUE = (
    _glue("cola", "CoLA", ("sentence",), "matthews_correlation", ("unacceptable", "acceptable"), ("mcc", "accuracy")),
    _glue("sst2", "SST-2", ("sentence",), "accuracy", ("negative", "positive"), ("accuracy",)),
    _glue(
        "mrpc",
        "MRPC",
        ("sentence1", "sentence2"),
        "f1",
        ("not_equivalent", "equivalent"),
        ("f1", "accuracy"),
    ),
    _glue("stsb", "STS-B", ("sentence1", "sentence2"), "pearson", (), ("pearson", "spearman")),
    _glue("qqp", "QQP", ("question1", "question2"), "f1", ("not_duplicate", "duplicate"), ("f1", "accuracy")),
    Task(
        name="mnli",
        title="MNLI-m/mm",
        kind="classification",
        sources=("premise", "hypothesis"),
        target="label",
        metrics=("accuracy",),
        main_score="accuracy",
        hub=HubData(_HUB, "mnli", {"train": "train", **{name: name for name in _MNLI_SPLITS}}),
        labels=("entailment", "neutral", "contradiction"),
        id_column="idx",
        validation_splits=_MNLI_SPLITS,
        languages=("en",),
    ),
    _glue("qnli", "QNLI", ("question", "sentence"), "accuracy", _YES_NO[::-1], ("accuracy",)),
    _glue("rte", "RTE", ("sentence1", "sentence2"), "accuracy", _YES_NO[::-1], ("accuracy",)),
    _glue("wnli", "WNLI", ("sentence1", "sentence2"), "accuracy", _YES_NO, ("accuracy",)),
)
