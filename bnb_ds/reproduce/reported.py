"""Published numbers of the systems in the paper's tables, each with its source.

A number stands here only if its source could be read. Numbers of the paper's tables that are not here could not be read
when this was written; they are called missing, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

from bnb_ds.tasks.registry import get_task

PAPER = "Sohrab et al., IEEE Access 2024"
#: where the numbers of the paper stand that are not on record here
PAPER_ADDRESS = "https://doi.org/10.1109/ACCESS.2023.3346952"
#: GLGE's splits and scorer (Liu et al., 2021); the milliseconds are of a V100, batch 1, XSum's test split
PREDAT = (
    "Huang et al., PreDAT, TACL 2023, Table 2 (github.com/thu-coai/DA-Transformer, images/close_generation_result.png)"
)
#: of its baselines, what it quotes; its "ELMER" has the numbers that the paper gives for ELMER-soft
DEER = "Liang et al., DEER (Dynamic and Efficient Inference for Text Generation via BERT Family), Table 2"
#: bert-base-cased on the dev set, one run
HF_EXAMPLES = "github.com/huggingface/transformers, examples/pytorch/text-classification/README.md at 05ce25b"
#: of the GLUE server, on the test set, not on the dev set; as quoted in several public notes of the paper
BERT_PAPER = "Devlin et al., BERT, NAACL 2019, Table 1: the hidden test set, not the dev set"
#: BLEU on tokenised text; raw or distilled training data as named
DAT = "Huang et al., DA-Transformer, ICML 2022, Table 1 (images/machine_translation_result.png of its repository)"
#: sacreBLEU; non-autoregressive systems on distilled data
CONSISTENT = (
    "Zhu et al., Non-Autoregressive NMT with Consistency Regularization Optimized Variational Framework, Table 1"
)
BIOBART = "Yuan et al., BioBART-v2, Table 11 (github.com/GanjinZero/BioBART, BioBART-v2.pdf); base sizes"


@dataclass(frozen=True)
class Reported:
    """A published number.

    Attributes:
        table: the paper's table that it belongs to.
        task: name of the task.
        system: name of the system.
        column: a column of `bnb_ds.reproduce.paper_rows.COLUMNS`.
        value: as published.
        source: who states it.
    """

    table: int
    task: str
    system: str
    column: str
    value: float
    source: str


def reported() -> tuple[Reported, ...]:
    """All numbers on record."""
    return tuple(
        Reported(table, task, system, column, value, source)
        for source, table, task, systems in _NUMBERS
        for system, values in systems.items()
        for column, value in values.items()
    )


def _rouge(first: float, second: float, longest: float, ms: float | None = None) -> dict[str, float]:
    values = {"rouge1": first, "rouge2": second, "rougeL": longest}
    return values if ms is None else {**values, "ms": ms}


def _question(longest: float, bleu4: float) -> dict[str, float]:
    return {"rougeL": longest, "bleu4": bleu4}


def _on_the_dev_set(**scores: float) -> tuple[tuple[str, int, str, dict[str, dict[str, float]]], ...]:
    """BERT's score of each task, in percent."""
    return tuple((HF_EXAMPLES, 1, task, {"BERT": {get_task(task).main_score: score}}) for task, score in scores.items())


def _on_the_test_set(**scores: float) -> tuple[tuple[str, int, str, dict[str, dict[str, float]]], ...]:
    """OpenAI GPT's score of each task, in percent."""
    return tuple(
        (BERT_PAPER, 1, task, {"OpenAI GPT": {get_task(task).main_score: score}}) for task, score in scores.items()
    )


def _translation(
    source: str, directions: tuple[str, ...], systems: dict[str, tuple[float, ...]]
) -> tuple[tuple[str, int, str, dict[str, dict[str, float]]], ...]:
    """BLEU of each system in some directions."""
    return tuple(
        (source, 3, task, {system: {"bleu": scores[number]} for system, scores in systems.items()})
        for number, task in enumerate(directions)
    )


#: source, table, task, system -> column -> number
_NUMBERS: tuple[tuple[str, int, str, dict[str, dict[str, float]]], ...] = (
    (
        PAPER,
        2,
        "xsum",
        {
            "NAT": _rouge(24.04, 3.88, 20.32),
            "ELMER-soft": _rouge(38.3, 14.2, 29.9),
            "BnB": _rouge(36.1, 13.4, 30.0),
        },
    ),
    (PAPER, 2, "squad_qg", {"BnB": {"bleu4": 13.8}}),
    *_on_the_dev_set(
        cola=56.53, sst2=92.32, mrpc=88.85, stsb=88.64, qqp=87.49, mnli=83.91, qnli=90.66, rte=65.7, wnli=56.34
    ),
    # STS-B is left out: the server reports Spearman there, and the column here is Pearson.
    *_on_the_test_set(cola=45.4, sst2=91.3, mrpc=82.3, qqp=70.3, mnli=82.1, qnli=87.4, rte=56.0),
    (
        PREDAT,
        2,
        "xsum",
        {
            "Transformer": _rouge(30.66, 10.80, 24.48),
            "BART": _rouge(38.79, 16.16, 30.61),
            "MASS": _rouge(39.70, 17.24, 31.91, 353),
            "ProphetNet": _rouge(39.89, 17.12, 32.07),
            "NAT": _rouge(24.04, 3.88, 20.32),
            "GLAT + CTC": _rouge(31.34, 9.06, 24.68, 24),
            "DSLP + CTC": _rouge(28.75, 7.35, 22.73, 24),
            "LatentGLAT": _rouge(28.44, 7.00, 22.66, 28),
            "BANG": _rouge(32.59, 8.98, 27.41, 18),
            "MIST": _rouge(34.63, 11.29, 28.70, 22),
            "PreDAT": _rouge(38.80, 16.07, 31.78, 26),
            "PreDAT, beam": _rouge(39.79, 17.38, 32.71, 63),
            "PreDAT without pre-training": _rouge(32.56, 11.17, 26.21, 25),
        },
    ),
    (
        PREDAT,
        2,
        "squad_qg",
        {
            "Transformer": _question(29.43, 4.61),
            "BART": _question(42.55, 17.06),
            "MASS": _question(49.48, 20.16),
            "ProphetNet": _question(48.00, 19.58),
            "NAT": _question(31.51, 2.46),
            "GLAT + CTC": _question(30.31, 3.21),
            "DSLP + CTC": _question(28.70, 3.00),
            "LatentGLAT": _question(28.28, 2.38),
            "BANG": _question(44.07, 12.75),
            "MIST": _question(47.13, 16.00),
            "PreDAT": _question(49.78, 21.74),
            "PreDAT, beam": _question(50.41, 22.66),
            "PreDAT without pre-training": _question(30.11, 3.30),
        },
    ),
    (DEER, 2, "squad_qg", {"ELMER-soft": _question(40.2, 13.5), "DEER, one pass": _question(48.2, 16.9)}),
    (DEER, 2, "xsum", {"ELMER-soft": _rouge(38.3, 14.2, 29.9), "DEER, one pass": _rouge(34.1, 12.2, 28.9)}),
    *_translation(
        DAT,
        ("wmt14_en_de", "wmt14_de_en"),
        {
            "Transformer": (28.07, 31.94),
            "NAT": (11.79, 16.27),
            "NAT, dist.": (19.99, 25.77),
            "CTC": (18.42, 23.65),
            "CTC, dist.": (25.52, 28.73),
            "GLAT + CTC": (25.02, 29.14),
            "GLAT + CTC, dist.": (26.39, 29.54),
            "CMLM, 10 passes": (24.61, 29.40),
            "CMLM, 10 passes, dist.": (27.03, 30.53),
            "DA-Transformer, lookahead": (26.57, 30.68),
            "DA-Transformer, lookahead, dist.": (27.49, 31.37),
            "DA-Transformer, beam + LM": (27.25, 31.54),
            "DA-Transformer, beam + LM, dist.": (27.91, 31.95),
        },
    ),
    *_translation(
        CONSISTENT,
        ("wmt16_en_ro", "wmt16_ro_en"),
        {
            "Transformer": (33.73, 34.38),
            "NAT, dist.": (27.29, 29.06),
            "iNAT, 10 passes, dist.": (29.32, 30.19),
            "CMLM, 10 passes, dist.": (33.08, 33.31),
            "GLAT, dist.": (31.19, 32.04),
        },
    ),
    (BIOBART, 4, "icliniq", {"BART": _rouge(61.43, 48.68, 59.71), "BioBART": _rouge(61.07, 48.47, 59.42)}),
    (BIOBART, 4, "healthcaremagic", {"BART": _rouge(46.81, 26.19, 44.34), "BioBART": _rouge(46.67, 26.03, 44.11)}),
)
