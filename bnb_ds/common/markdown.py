"""Tables for terminals, files and TensorBoard."""

from __future__ import annotations

import re
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


def markdown_lists(names: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown with a list for each row, whose items are the cells below their names.

    TensorBoard breaks the words of a table beside long texts; a list has room for both. Cells may hold any text: what
    would change the letters is escaped, newlines become spaces.
    """
    lists = ("\n".join(f"- **{name}:** {_plain(cell)}" for name, cell in zip(names, row, strict=True)) for row in rows)
    return "\n\n---\n\n".join(lists)


def _plain(text: str) -> str:
    return re.sub(r"([\\`*_])", r"\\\1", " ".join(text.split()))
