"""Wikipedia as a source: MediaWiki ``pages-articles`` dumps, and rows with a text column."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from data_prep.sources.bz2_ranges import open_range, stream_ranges
from data_prep.sources.documents import BadRecord, Document, Omitted, Record
from data_prep.sources.markup.limits import TooSlowError, cpu_seconds
from data_prep.sources.markup.names import REDIRECTS
from data_prep.sources.markup.site import Site, site_of
from data_prep.sources.opening import kind, reading_errors
from data_prep.sources.text import EXTENSIONS, TextFormat, TextSource
from data_prep.sources.units import SourceFile, Unit
from data_prep.sources.wikitext import plain_text
from data_prep.sources.xml_input import elements, stream_elements

ROW_KINDS = (*(suffix for suffix in EXTENSIONS if suffix != ".txt"), ".arrow")
KINDS = (".xml", *ROW_KINDS)

_ROOTS = ("mediawiki",)
_TAGS = ("{*}siteinfo", "{*}page")
_REDIRECT = re.compile(r"\s*[#\uff03](\w{1,40}(?:-\w{1,40})?)\s{0,9}:?\s{0,9}\[\[")
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_SECONDS_PER_PAGE, _SECONDS_PER_MB = 20, 10  # of CPU time; a page takes about 0.1 s/MB
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
    """The articles of a dump as plain text: main namespace, no redirects, the newest revision of each.

    Raises:
        DataError: the file is truncated, not well-formed or no MediaWiki export.
    """
    site = _site(file)
    for place, record in _sources(file, unit):
        yield _in_plain_text(record, place, site) if isinstance(record, Document) else record


def articles(file: SourceFile) -> Iterator[Document]:
    """The articles of a dump as they are written, in wikitext.

    Raises:
        DataError: as for :func:`read_dump`.
    """
    return (record for _, record in _sources(file) if isinstance(record, Document))


def _sources(file: SourceFile, unit: Unit | None = None) -> Iterator[tuple[str, Record]]:
    """Place and record of every page; the text of a document is wikitext."""
    is_range = unit is not None and unit.end is not None
    pages = _range_elements(file, unit) if is_range else elements(file, _TAGS, _ROOTS)
    for number, page in enumerate(page for page in pages if page.tag.endswith("page")):
        place = f"{file.path}: page {number + 1}"
        yield place, _source(page, file, place)


def _source(page: Any, file: SourceFile, place: str) -> Record:
    title = page.findtext("{*}title") or ""
    identifier = page.findtext("{*}id")
    if not identifier:
        return BadRecord(place, f"{title!r} has no id; remove the page")
    if (page.findtext("{*}ns") or "0") != "0":
        return Omitted("of another namespace")
    revision = _newest_revision(page)
    text = "" if revision is None else revision.findtext("{*}text") or ""
    if page.find("{*}redirect") is not None or _is_redirect(text):
        return Omitted("redirect")
    if revision is not None and (revision.findtext("{*}model") or "wikitext") != "wikitext":
        return Omitted("not wikitext")
    return Document(identifier, text, file.name, title)


def _in_plain_text(article: Document, place: str, site: Site) -> Record:
    try:
        with cpu_seconds(_SECONDS_PER_PAGE + _SECONDS_PER_MB * len(article.text) / 1e6):
            return replace(article, text=plain_text(article.text, site))
    except TooSlowError:
        print(f"{place}: {article.title!r} takes too long to read; the page is left out", file=sys.stderr)
        return Omitted("over the time limit")


def _newest_revision(page: Any) -> Any:
    """The revision with the latest time, of equals the last; one whose text was withdrawn only if there is no other."""
    best, rank = None, (False, "")
    for revision in page.iterfind("{*}revision"):
        text = revision.find("{*}text")
        found = (text is not None and text.get("deleted") is None, revision.findtext("{*}timestamp") or "")
        if best is None or found >= rank:
            best, rank = revision, found
    return best


def _is_redirect(text: str) -> bool:
    """Whether a page without ``<redirect>``, as old dumps have them, begins like one in any language."""
    match = _REDIRECT.match(text)
    return match is not None and match[1].lower() in REDIRECTS


@lru_cache(maxsize=8)
def _site(file: SourceFile) -> Site:
    """The wiki as the dump's header names it; where there is no header, the names of all wikis hold."""
    for element in elements(file, _TAGS, _ROOTS):  # the header, if there is one, is the first
        root = element.getparent()
        language = root.get(_LANGUAGE) or (element.findtext("{*}dbname") or "en").partition("wik")[0]
        found = {
            namespace.get("key", ""): namespace.text or ""
            for namespace in element.iterfind("{*}namespaces/{*}namespace")
        }
        return site_of(found, language.lower())
    return site_of({})


def _range_elements(file: SourceFile, unit: Unit) -> Iterator[Any]:
    with reading_errors(file.path), open_range(file, unit) as stream:
        yield from stream_elements(stream, file, _TAGS, _ROOTS)
