"""The tasks with text targets: summarization, question generation and translation (the paper's Tables 2 to 4)."""

from __future__ import annotations

from dataclasses import replace

from bnb_ds.tasks.task import HubData, Task

_SUMMARY_METRICS = ("rouge", "length_ratio", "repetition_rate")
_TRANSLATION_METRICS = ("sacrebleu", "length_ratio", "repetition_rate")

SUMMARIZATION = Task(
    name="summarization",
    title="Summarization",
    kind="generation",
    sources=("document",),
    target="summary",
    metrics=_SUMMARY_METRICS,
    main_score="rougeL",
    max_source_length=512,
    max_target_length=128,
    hub_task="summarization",
)
XSUM = replace(
    SUMMARIZATION,
    name="xsum",
    title="XSum",
    hub=HubData("EdinburghNLP/xsum"),
    max_target_length=64,
    id_column="id",
    languages=("en",),
)
# Both were published without splits; ``data.split`` makes splits by a hash.
ICLINIQ = replace(SUMMARIZATION, name="icliniq", title="iCliniq", max_target_length=64, languages=("en",))
HEALTHCAREMAGIC = replace(
    SUMMARIZATION, name="healthcaremagic", title="HealthCareMagic", max_target_length=64, languages=("en",)
)

#: Rajpurkar et al., 2016. Validation is SQuAD's own; train and test divide its training set as in Du et al., 2017
SQUAD_QG = Task(
    name="squad_qg",
    title="SQuAD question generation",
    kind="generation",
    sources=("answers.text.0", "context"),
    target="question",
    metrics=("bleu4", "rouge", "length_ratio", "repetition_rate"),
    main_score="rougeL",
    hub=HubData("rajpurkar/squad", "plain_text", {"train": "train", "validation": "validation", "test": "train"}),
    max_source_length=512,
    max_target_length=64,
    cut="around",  # the answer stays whole, and its place in the passage is kept
    form="squad",
    id_column="id",
    document_column="title",
    languages=("en",),
)

TRANSLATION = Task(
    name="translation",
    title="Translation",
    kind="generation",
    sources=("source",),
    target="target",
    metrics=_TRANSLATION_METRICS,
    main_score="bleu",
    two_languages=True,
    hub_task="translation",
)


def _wmt(year: str, config: str, source: str, target: str) -> Task:
    return replace(
        TRANSLATION,
        name=f"{year}_{source}_{target}",
        title=f"{year.upper()} {source}-{target}",
        sources=(f"translation.{source}",),
        target=f"translation.{target}",
        hub=HubData(f"wmt/{year}", config),
        languages=(source, target),
    )


GENERATION = (
    SUMMARIZATION,
    XSUM,
    ICLINIQ,
    HEALTHCAREMAGIC,
    SQUAD_QG,
    TRANSLATION,
    _wmt("wmt14", "de-en", "en", "de"),
    _wmt("wmt14", "de-en", "de", "en"),
    _wmt("wmt16", "ro-en", "en", "ro"),
    _wmt("wmt16", "ro-en", "ro", "en"),
)
