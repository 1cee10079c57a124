"""The rows of the paper's tables as a list: the command of each, what it needs, and its numbers.

Without a measured result it loads no model code, so that a list is printed at once.
"""

from __future__ import annotations

from pathlib import Path

from bnb_ds.reproduce.paper_rows import TITLES, Row, rows
from bnb_ds.reproduce.reported import PAPER, PAPER_ADDRESS, reported
from bnb_ds.reproduce.results_of_rows import measured
from bnb_ds.tasks.registry import get_task

NOT_ON_RECORD = f"not on record here; see {PAPER_ADDRESS}"

#: claims of speed that could be read, of the paper and of Asada and Miwa's BioNART
CLAIMS = (
    ("BnB against BERT2BERT, average inference speed", "10x", "abstract"),
    ("BnB against BERT2BERT, translation on a GPU", "2.7x", "translation timings"),
    ("BnB against BERT2BERT, translation on a CPU", "2.1x", "translation timings"),
    ("BnB against CMLM, semi-autoregressive", "7.92x", "Table 2"),
    (
        "BioNART, BnB on PubMed, against an autoregressive model, iCliniq",
        "18x at 94% of its ROUGE",
        "BioNLP 2023, abstract",
    ),
)


def listing(runs: Path, table: int | None = None) -> str:
    """Format the rows as text: the command of each, what it needs, and its numbers.

    Args:
        runs: directory of the runs, for measured results.
        table: list only this table; None: all.

    Raises:
        CheckpointError: the recipe of a run cannot be read.
        DataError: a results file cannot be read.
    """
    lines: list[str] = []
    current = None
    for row in rows():
        if table not in (None, row.table):
            continue
        if row.table != current:
            current = row.table
            lines += ["", f"Table {current}"] if lines else [f"Table {current}"]
        lines += [
            f"  {get_task(row.task).title}, {row.system}",
            f"    run       bnb-ds reproduce --run {row.name}",
            f"    command   {row.command}",
            f"    needs     {row.needs}",
            *([f"    note      {row.note}"] if row.note else []),
            f"    paper     {_published(row)}",
            f"    here      {_here(row, runs)}",
        ]
    lines += ["", "Speed (bnb-ds bench generate measures both systems side by side)"]
    lines += [f"  {what}: {number} (reported: {source})" for what, number, source in CLAIMS]
    return "\n".join(lines)


def _published(row: Row) -> str:
    place = (row.task, row.published_system, PAPER)
    found = [entry for entry in reported() if (entry.task, entry.system, entry.source) == place]
    named = ", ".join(f"{TITLES.get(entry.column, entry.column)} {entry.value:g}" for entry in found)
    return f"{named} (reported)" if found else NOT_ON_RECORD


def _here(row: Row, runs: Path) -> str:
    found = []
    for split, result in measured(row, runs).items():
        score, differs = result.scores[result.main_score], "".join(f"; {change}" for change in result.differs)
        shown = "no number" if score is None else f"{score:.4g}"
        found.append(f"{split}: {result.main_score} {shown} (measured{differs})")
    return "; ".join(found) or "not measured"
