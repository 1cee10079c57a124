"""The paper's tables as text: what is published, and what was measured here.

A number is *reported* by the paper, *reported elsewhere*, or *measured* (from the ``eval_results.json`` of a run here).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bnb_ds.common.markdown import markdown_table
from bnb_ds.reproduce.effort import EFFICIENCY, GPU, effort_of
from bnb_ds.reproduce.paper_rows import COLUMNS, FINETUNE, PAPER_RECIPES, SPEED, TITLES, Row, rows
from bnb_ds.reproduce.reported import PAPER, PAPER_ADDRESS, Reported, reported
from bnb_ds.reproduce.results_of_rows import Measured, measured, other_training
from bnb_ds.reproduce.speed_of_rows import latencies, setting_of
from bnb_ds.tasks.registry import get_task

#: in a cell: no such number; a number of the paper that could not be read
NOTHING, UNREAD = "-", "?"
#: behind a number that is measured, but not as the row says
MARK = "*"
#: in a cell of speed: of a row that was run, but not timed
TO_TIME = "(to time)"

#: scores that scikit-learn and scipy give as fractions
_FRACTIONS = ("matthews_correlation", "pearson", "spearman")


def table(number: int, runs: Path, *, latex: bool = False) -> str:
    """One of the paper's tables: a part for each task, a line for each system, a cell for each column.

    A cell holds three numbers: the paper's, one that was reported elsewhere, and the one that was measured here. What
    was not run has the hours in its place that it would take. A number of another training or evaluation than the row's
    has a mark, and a note says in what it differs.

    Args:
        number: 1 to 4.
        runs: directory of the runs, for measured results.
        latex: LaTeX instead of Markdown.

    Raises:
        CheckpointError: the recipe of a run cannot be read.
        DataError: a results file cannot be read.
    """
    tasks = list(dict.fromkeys(row.task for row in rows() if row.table == number))
    found = {row: measured(row, runs).get(row.split) for row in rows() if row.table == number}
    speeds = {task: latencies(task, runs) for task in tasks}
    differs = {row: _differs(row, runs, result, speeds[row.task]) for row, result in found.items()}
    parts = [_part(number, task, found, speeds[task], differs, latex) for task in tasks]
    sources = sorted({number_.source for number_ in reported() if number_.table == number and number_.source != PAPER})
    notes = [
        _legend(has_published=any(row.is_as_published for row in found)),
        f"The paper: {PAPER}.",
        *(f"Elsewhere: {source}." for source in sources),
    ]
    notes += [line for task in tasks if (line := setting_of(task, runs))]
    notes += _notes_of(found)
    notes += [f"{MARK} {row.name}: {'; '.join(changes)}." for row, changes in differs.items() if changes]
    missing = _missing([row for row, result in found.items() if result is None])
    if latex:
        return "\n\n".join([*parts, "\n".join(f"% {line}" for line in [*notes, *missing.splitlines()])])
    return "\n\n".join([*parts, "\n".join(notes), *([missing] if missing else [])])


def _notes_of(found: Iterable[Row]) -> list[str]:
    """What rows say of themselves, rows of one note together."""
    names: dict[str, list[str]] = {}
    for row in found:
        if row.note:
            names.setdefault(row.note, []).append(row.name)
    return [f"{', '.join(of_note)}: {note}." for note, of_note in names.items()]


def _legend(*, has_published: bool) -> str:
    ours = f"run recipes of {FINETUNE}, whose settings are ours; docs/baselines.md names the differences."
    papers = f"run the paper's own settings ({PAPER_RECIPES}, ds_configs/paper_*.json)"
    return (
        f"Each cell: paper / reported elsewhere / measured here. {UNREAD}: stands in the paper ({PAPER_ADDRESS}), but"
        f" could not be read when this table was made. {NOTHING}: none. (3.0 h): not run here; the hours of one {GPU}"
        f" at {EFFICIENCY:.0%} of its peak, with samples as long as the recipe allows, and without an early end."
        f" {TO_TIME}: run here, but not timed; bnb-ds reproduce --time TASK does it. {MARK}: measured, but trained or"
        " scored otherwise than the row says, as listed below. "
        + (f'Rows "as published" {papers}; the others {ours}' if has_published else f"Rows {ours}")
    )


def _differs(row: Row, runs: Path, result: Measured | None, speeds: dict[str, dict[str, float]]) -> tuple[str, ...]:
    """In what the numbers measured for a row are of another training or evaluation than the row's."""
    if result is not None:
        return result.differs
    return tuple(other_training(row, runs / row.output_dir)) if row.system in speeds else ()


def _part(
    number: int,
    task: str,
    found: dict[Row, Measured | None],
    speeds: dict[str, dict[str, float]],
    differs: dict[Row, tuple[str, ...]],
    latex: bool,
) -> str:
    columns = COLUMNS[task]
    runnable = {row.system: row for row in found if row.task == task}
    published = [entry for entry in reported() if entry.table == number and entry.task == task]
    lines = []
    for system in dict.fromkeys([*runnable, *(entry.system for entry in published)]):
        row = runnable.get(system)
        own = [entry for entry in published if entry.system == (row.published_system if row else system)]
        here = {} if row is None else _here(row, found[row], speeds.get(system, {}), MARK * bool(differs[row]))
        lines.append((system, *(_cell(column, own, row is not None, here) for column in columns)))
    title, header = get_task(task).title, ["system", *(TITLES.get(column, column) for column in columns)]
    if latex:
        return _latex(title, header, lines)
    return f"Table {number}, {title}\n\n{markdown_table(header, lines)}"


def _here(row: Row, result: Measured | None, speed: dict[str, float], mark: str) -> dict[str, str]:
    """Column -> what was measured for a row, or what it takes to measure it."""
    needed = f"({effort_of(row).short})" if result is None else NOTHING
    here = {}
    for column in COLUMNS[row.task]:
        is_speed = column in SPEED
        value = speed.get(column) if is_speed else (result.scores.get(column) if result else None)
        if value is not None:
            here[column] = f"{value * (100 if column in _FRACTIONS else 1):.1f}{mark}"
        else:
            here[column] = TO_TIME if is_speed and result is not None else needed
    return here


def _cell(column: str, published: Sequence[Reported], is_row: bool, here: dict[str, str]) -> str:
    """The three numbers of a system, of which ``published`` are known; what is no row is not run here."""
    of_cell = [entry for entry in published if entry.column == column]
    unread = UNREAD if is_row else NOTHING
    paper = next((f"{entry.value:g}" for entry in of_cell if entry.source == PAPER), unread)
    elsewhere = next((f"{entry.value:g}" for entry in of_cell if entry.source != PAPER), NOTHING)
    return f"{paper} / {elsewhere} / {here.get(column, NOTHING)}"


def _missing(without: Sequence[Row]) -> str:
    """What the rows without a result need; empty if there are none."""
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
