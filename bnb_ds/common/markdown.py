"""Tables for terminals, files and TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(names: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A table with a line of names and one for each row, whatever its texts hold; no newline at its end."""
    lines = [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in (names, *rows)]
    header, *rest = [f"| {line} |" for line in lines]
    return "\n".join([header, "|" + "---|" * len(names), *rest])
