"""The paper's tables as text: what is published, and what was measured here.

A number is *reported* by the paper, *reported elsewhere*, or *measured* (from the ``eval_results.json`` of a run here).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnb_ds.common.markdown import markdown_table
from bnb_ds.reproduce.effort import EFFICIENCY, GPU, effort_of
from bnb_ds.reproduce.paper_rows import COLUMNS, SPEED, TITLES, Row, rows
from bnb_ds.reproduce.reported import PAPER, PAPER_ADDRESS, Reported, reported
from bnb_ds.reproduce.results_of_rows import measured
from bnb_ds.reproduce.speed_of_rows import latencies, setting_of
from bnb_ds.tasks.registry import get_task

#: in a cell: no such number; a number of the paper that could not be read
NOTHING, UNREAD = "-", "?"

#: scores that scikit-learn and scipy give as fractions
_FRACTIONS = ("matthews_correlation", "pearson", "spearman")


def table(number: int, runs: Path, *, latex: bool = False) -> str:
    """One of the paper's tables: a part for each task, a line for each system, a cell for each column.

    A cell holds three numbers: the paper's, one that was reported elsewhere, and the one that was measured here. What
    was not run has the hours in its place that it would take.

    Args:
        number: 1 to 4.
        runs: directory of the runs, for measured results.
        latex: LaTeX instead of Markdown.

    Raises:
        DataError: a results file cannot be read.
    """
    tasks = list(dict.fromkeys(row.task for row in rows() if row.table == number))
    parts = [_part(number, task, runs, latex) for task in tasks]
    legend = (
        f"Each cell: paper / reported elsewhere / measured here. {UNREAD}: stands in the paper ({PAPER_ADDRESS}), but"
        f" could not be read when this table was made. {NOTHING}: none. (3.0 h): not run here; the hours of one {GPU}"
        f" at {EFFICIENCY:.0%} of its peak, with samples as long as the recipe allows, and without an early end."
    )
    sources = sorted({number_.source for number_ in reported() if number_.table == number and number_.source != PAPER})
    notes = [legend, f"The paper: {PAPER}.", *(f"Elsewhere: {source}." for source in sources)]
    notes += [line for task in tasks if (line := setting_of(task, runs))]
    missing = _missing(number, runs)
    if latex:
        return "\n\n".join([*parts, "\n".join(f"% {line}" for line in [*notes, *missing.splitlines()])])
    return "\n\n".join([*parts, "\n".join(notes), *([missing] if missing else [])])


def _part(number: int, task: str, runs: Path, latex: bool) -> str:
    columns = COLUMNS[task]
    runnable = {row.system: row for row in rows() if row.table == number and row.task == task}
    published = [entry for entry in reported() if entry.table == number and entry.task == task]
    systems = list(dict.fromkeys([*runnable, *(entry.system for entry in published)]))
    speeds, lines = latencies(task, runs), []
    for system in systems:
        own = [entry for entry in published if entry.system == system]
        lines.append((system, *(_cell(column, own, runnable.get(system), runs, speeds) for column in columns)))
    title, header = get_task(task).title, ["system", *(TITLES.get(column, column) for column in columns)]
    if latex:
        return _latex(title, header, lines)
    return f"Table {number}, {title}\n\n{markdown_table(header, lines)}"


def _cell(
    column: str,
    published: Sequence[Reported],
    row: Row | None,
    runs: Path,
    speeds: dict[str, dict[str, float]],
) -> str:
    """The three numbers of a system, of which ``published`` are known; ``row`` is None if it cannot be run here."""
    of_cell = [entry for entry in published if entry.column == column]
    unread = NOTHING if row is None else UNREAD
    paper = next((f"{entry.value:g}" for entry in of_cell if entry.source == PAPER), unread)
    elsewhere = next((f"{entry.value:g}" for entry in of_cell if entry.source != PAPER), NOTHING)
    scores = _scores(row, runs)
    score = (speeds.get(row.system, {}) if row and column in SPEED else scores).get(column)
    here = NOTHING if score is None else f"{score * (100 if column in _FRACTIONS else 1):.1f}"
    if row is not None and not scores and column not in SPEED:
        here = f"({effort_of(row).short})"
    return f"{paper} / {elsewhere} / {here}"


def _scores(row: Row | None, runs: Path) -> dict[str, float | None]:
    if row is None:
        return {}
    _, scores = measured(row, runs).get(row.split, ("", {}))
    return scores


def _missing(number: int, runs: Path) -> str:
    """What the rows without a result need; empty if there are none."""
    without = [row for row in rows() if row.table == number and not _scores(row, runs)]
    if not without:
        return ""
    efforts = {row: effort_of(row) for row in without}
    lines = [
        (row.name, f"{effort.steps:,} x {effort.samples:,}", effort.short, row.needs) for row, effort in efforts.items()
    ]
    total = sum(effort.hours for effort in efforts.values())
    head = (
        f"{len(without)} rows were not run here; together {total:,.1f} h, pre-training not counted."
        " bnb-ds reproduce --run ROW runs one:"
    )
    return head + "\n\n" + markdown_table(("row", "steps x samples", "GPU hours", "needs"), lines)


def _latex(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str]) -> str:
        return " & ".join(cell.replace("_", "\\_") for cell in cells) + r" \\"

    return "\n".join(
        [
            f"% {title}",
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\hline",
            row(header),
            r"\hline",
            *map(row, lines),
            r"\hline",
            r"\end{tabular}",
        ]
    )
