"""Wikipedia as a source: MediaWiki ``pages-articles`` dumps, and rows with a text column."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from data_prep.sources.bz2_ranges import open_range, stream_ranges
from data_prep.sources.documents import BadRecord, Document, Omitted, Record
from data_prep.sources.opening import kind, reading_errors
from data_prep.sources.text import EXTENSIONS, TextFormat, TextSource
from data_prep.sources.units import SourceFile, Unit
from data_prep.sources.wikitext import HIDDEN_NAMESPACES, plain_text
from data_prep.sources.xml_input import elements, stream_elements

ROW_KINDS = (*(suffix for suffix in EXTENSIONS if suffix != ".txt"), ".arrow")
KINDS = (".xml", *ROW_KINDS)

_ROOTS = ("mediawiki",)
_TAGS = ("{*}siteinfo", "{*}page")
_REDIRECT = re.compile(r"\s*#REDIRECT", re.IGNORECASE)
_RANGE_BYTES = 1 << 25


class WikipediaSource:
    """Dumps and rows as a :class:`~data_prep.sources.units.Source`."""

    latest_wins = False

    def __init__(self, files: Sequence[SourceFile], text_format: TextFormat, settings: dict[str, Any]) -> None:
        self.files = files
        self.settings = settings
        self._rows = TextSource(files, text_format, settings)

    def units(self) -> list[Unit]:
        """Multistream dumps by ranges of streams, parquet by row groups, other files whole."""
        found: list[Unit] = []
        for unit in self._rows.units():
            file = self.files[unit.file]
            is_splittable = file.path.suffix == ".bz2" and kind(file.path) == ".xml"
            found.extend(stream_ranges(file, unit.file, _RANGE_BYTES) if is_splittable else [unit])
        return found

    def read(self, unit: Unit) -> Iterator[Record]:
        """The records of a file or of a range of it."""
        file = self.files[unit.file]
        return read_dump(file, unit) if kind(file.path) == ".xml" else self._rows.read(unit)


def read_dump(file: SourceFile, unit: Unit | None = None) -> Iterator[Record]:
    """The articles of a dump as plain text: main namespace, no redirects.

    Raises:
        DataError: the file is truncated, not well-formed or no MediaWiki export.
    """
    is_range = unit is not None and unit.end is not None
    pages = _range_elements(file, unit) if is_range else elements(file, _TAGS, _ROOTS)
    hidden = _hidden_namespaces(file)
    for number, page in enumerate(page for page in pages if page.tag.endswith("page")):
        yield _record(page, file, f"{file.path}: page {number + 1}", hidden)


def _record(page: Any, file: SourceFile, place: str, hidden: frozenset[str]) -> Record:
    title = page.findtext("{*}title") or ""
    identifier = page.findtext("{*}id")
    if not identifier:
        return BadRecord(place, f"{title!r} has no id; remove the page")
    if (page.findtext("{*}ns") or "0") != "0":
        return Omitted("of another namespace")
    text = page.findtext("{*}revision/{*}text") or ""
    if page.find("{*}redirect") is not None or _REDIRECT.match(text):
        return Omitted("redirect")
    if (page.findtext("{*}revision/{*}model") or "wikitext") != "wikitext":
        return Omitted("not wikitext")
    try:
        return Document(identifier, plain_text(text, hidden), file.name, title)
    except RecursionError:
        return BadRecord(place, f"the markup of {title!r} is nested too deeply; remove the page")


@lru_cache(maxsize=8)
def _hidden_namespaces(file: SourceFile) -> frozenset[str]:
    """Prefixes of links to files and categories, with this wiki's own names for them."""
    names = set(HIDDEN_NAMESPACES)
    for element in elements(file, _TAGS, _ROOTS):  # the header, if there is one, is the first
        for namespace in element.iterfind("{*}namespaces/{*}namespace"):
            if namespace.get("key") in ("6", "14") and namespace.text:
                names.add(namespace.text.strip().lower())
        break
    return frozenset(names)


def _range_elements(file: SourceFile, unit: Unit) -> Iterator[Any]:
    with reading_errors(file.path), open_range(file, unit) as stream:
        yield from stream_elements(stream, file, _TAGS, _ROOTS)
