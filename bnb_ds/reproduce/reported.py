"""Published numbers of the systems in the paper's tables, each with its source.

A number stands here only if its source could be read. Numbers of the paper's tables that are not here could not be read
when this was written; they are called missing, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "Sohrab et al., IEEE Access 2024"
#: its picture of results; GLGE's splits and scorer (Liu et al., 2021), V100 for the milliseconds
PREDAT = "github.com/thu-coai/DA-Transformer, images/close_generation_result.png"


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


_NUMBERS = (
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
    (
        PREDAT,
        2,
        "xsum",
        {
            "BART": _rouge(38.79, 16.16, 30.61),
            "MASS": _rouge(39.70, 17.24, 31.91, 353),
            "ProphetNet": _rouge(39.89, 17.12, 32.07),
            "BANG": _rouge(32.59, 8.98, 27.41, 18),
            "MIST": _rouge(34.63, 11.29, 28.70, 22),
            "PreDAT": _rouge(38.80, 16.07, 31.78, 26),
            "PreDAT, beam": _rouge(39.79, 17.38, 32.71, 63),
        },
    ),
    (
        PREDAT,
        2,
        "squad_qg",
        {
            "MASS": _question(49.48, 20.16),
            "PreDAT": _question(49.78, 21.74),
            "PreDAT, beam": _question(50.41, 22.66),
        },
    ),
)
