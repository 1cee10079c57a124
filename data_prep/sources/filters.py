"""Options that change or leave out documents of any source; by default nothing is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from data_prep.sources.documents import Document, Omitted, Record
from data_prep.sources.units import Source, Unit

SHORT = "short"

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\ufeff\ufffd]")
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r" ?\n(?: ?\n)+ ?")


class FilteredSource:
    """Another source, cleaned and filtered.

    Args:
        source: where the documents come from.
        clean: remove control characters, make runs of spaces one and runs of blank lines one.
        min_characters: documents with fewer are omitted, and counted as short.
    """

    def __init__(self, source: Source, *, clean: bool, min_characters: int) -> None:
        self._source = source
        self._clean = clean
        self._min_characters = min_characters
        self.files = source.files
        self.latest_wins = source.latest_wins
        self.settings: dict[str, Any] = {**source.settings, "clean": clean, "min_characters": min_characters}

    def units(self) -> list[Unit]:
        """Those of the source."""
        return self._source.units()

    def read(self, unit: Unit) -> Iterator[Record]:
        """The records of the source after cleaning and filtering."""
        for record in self._source.read(unit):
            if isinstance(record, Document):
                text = clean(record.text) if self._clean else record.text
                if len(text) < self._min_characters:
                    yield Omitted(SHORT, record.id, record.version)
                    continue
                yield record if text is record.text else replace(record, text=text)
            else:
                yield record


def clean(text: str) -> str:
    """The text without control characters and without runs of spaces or blank lines."""
    return _BLANK_LINES.sub("\n\n", _SPACES.sub(" ", _CONTROL.sub("", text))).strip()
