"""Tables for terminals, files and TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(names: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table without a newline at its end. Cells may hold any text: ``|`` is escaped, newlines become spaces.

    Args:
        names: the heading of each column.
        rows: the cells of each row.
    """
    lines = [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in (names, *rows)]
    header, *rest = [f"| {line} |" for line in lines]
    return "\n".join([header, "|" + "---|" * len(names), *rest])
