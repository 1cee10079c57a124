"""MEDLINE/PubMed: baseline and update XML, and .jsonl of abstracts, into documents of title and abstract.

A document's text is the title on one line and each section of the abstract on another, with its label before it as
PubMed prints it. Files must be given in the order of their numbers (a directory is read in that order): a later record
of a PMID replaces an earlier one, and a deletion removes what came before it.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from data_prep.sources import units
from data_prep.sources.documents import SURROGATE, BadRecord, Deletion, Document, Omitted, Record, is_encodable
from data_prep.sources.inline_text import EntityReferenceError, NestingError, lines_of, text_of
from data_prep.sources.opening import kind, open_input, reading_errors
from data_prep.sources.pubmed_skim import SkimmedPubmed
from data_prep.sources.units import SourceFile, Unit
from data_prep.sources.xml_input import stream_elements

EXTENSIONS = (".xml", ".jsonl")
NO_ABSTRACT = "no abstract"

ID_KEYS = ("pmid", "pmcid", "id")  # of .jsonl; the first that a row has

_NO_ID = ("", "nan", "none", "null")
_NUMBER_OR_TRUTH = re.compile(r"\d+\.\d*|true|false", re.IGNORECASE)  # as other programs write a column of ids
_NO_TITLE = ("not available", "no title available", "no title", "in process citation")
_NO_LABEL = ("UNLABELLED", "UNASSIGNED")  # the DTD and PubMed put these where the publisher left the label out
_ENDS_OF_LABELS = " :.\uff1a\u2014\u2013-"  # some publishers end labels themselves
_LABEL_ENDED_TWICE = re.compile(r"^([A-Z][A-Z .,&/-]*)\s*::+\s*")  # in a text that a label was joined to before
_RECORDS = ("PubmedArticle", "PubmedBookArticle", "MedlineCitation", "DeleteCitation", "DeleteDocument")
_ROOTS = ("PubmedArticleSet", "MedlineCitationSet", "PubmedBookArticleSet")


class PubmedSource:
    """PubMed files as a :class:`~data_prep.sources.units.Source`."""

    latest_wins = True

    def __init__(self, files: Sequence[SourceFile]) -> None:
        self.files = files
        self.settings: dict[str, Any] = {"command": "prep pubmed"}

    def units(self) -> list[Unit]:
        """Whole files: PubMed cuts its data into files of 30,000 records itself."""
        return [Unit(index, file.num_bytes()) for index, file in enumerate(self.files)]

    def read(self, unit: Unit) -> Iterator[Record]:
        """The records of a file."""
        file = self.files[unit.file]
        return read_xml(file) if kind(file.path) == ".xml" else read_jsonl(file)


def find_files(inputs: Sequence[Any]) -> list[SourceFile]:
    """The .xml and .jsonl files, plain or compressed, that ``inputs`` name."""
    return units.find_files(inputs, EXTENSIONS)


def read_xml(file: SourceFile) -> Iterator[Record]:
    """The records of one XML file: articles, book articles and deletions, in their order.

    Raises:
        DataError: the file is truncated, not well-formed or no PubMed export.
    """
    number = 0
    for element in _elements(file):
        name = element.tag
        if name.startswith("Delete"):
            yield from (Deletion(text_of(pmid)) for pmid in element.iter("PMID"))
        else:
            number += 1
            place = f"{file.path}: record {number}"
            try:
                yield _record(element, name, file, place)
            except EntityReferenceError as error:
                yield BadRecord(place, f"{error}, and entities are not expanded; remove it from the file")
            except NestingError as error:
                yield BadRecord(place, f"{error}; remove the record from the file")


def read_jsonl(file: SourceFile) -> Iterator[Record]:
    """The records of a .jsonl file: ``pmid``, ``pmcid`` or ``id``; ``title``; ``abstract``, a string or sections.

    Raises:
        DataError: the file is truncated.
    """
    with reading_errors(file.path), open_input(file.path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.decode("utf-8", "replace").strip():
                continue
            place = f"{file.path}: line {number}"
            try:
                record = _jsonl_record(json.loads(line), file)
            except (ValueError, RecursionError, TypeError, AttributeError) as error:
                is_ours = isinstance(error, (ValueError, RecursionError))
                reason = error if is_ours else "title, abstract, label or text is of another type than a string"
                yield BadRecord(place, f"not a PubMed record ({reason}); mend or remove the line")
            else:
                yield record if is_encodable(*_texts_of(record)) else BadRecord(place, SURROGATE)


def _jsonl_record(row: Any, file: SourceFile) -> Document | Omitted:
    identifier = next((found for key in ID_KEYS if (found := _identifier(row, key)) is not None), None)
    if identifier is None:
        raise ValueError(f"no {', '.join(ID_KEYS[:-1])} or {ID_KEYS[-1]}")
    sections = row.get("abstract") or []
    if isinstance(sections, str):
        sections = [{"text": sections}]
    lines = [_section(part.get("label"), " ".join((part.get("text") or "").split())) for part in sections]
    return _document(file, identifier, 0, " ".join((row.get("title") or "").split()), lines)


def _identifier(row: Any, key: str) -> str | None:
    """What a row has under a key; None if nothing, as which NaN and the words for it count.

    Raises:
        ValueError: it has something that is no id.
    """
    value = row.get(key)
    if isinstance(value, str):
        value = value.strip()
        if _NUMBER_OR_TRUTH.fullmatch(value):
            raise ValueError(f"the {key} is {value!r}, which was a number or a truth value")
        return None if value.lower() in _NO_ID else value
    if value is None or value != value or value == 0:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"the {key} is of type {type(value).__name__}, not a string or an integer")
    return str(value)


def _texts_of(record: Document | Omitted) -> tuple[str, ...]:
    return (record.id, record.text) if isinstance(record, Document) else (record.id,)


def _elements(file: SourceFile) -> Iterator[Any]:
    with reading_errors(file.path), open_input(file.path) as stream:
        skimmed = io.BufferedReader(SkimmedPubmed(stream), 1 << 16)
        yield from stream_elements(skimmed, file, _RECORDS, _ROOTS)


def _record(element: Any, name: str, file: SourceFile, place: str) -> Record:
    if name == "PubmedBookArticle":
        citation = article = element.find("BookDocument")
        titles = ("ArticleTitle", "Book/BookTitle")
    else:
        citation = element if name == "MedlineCitation" else element.find("MedlineCitation")
        article = None if citation is None else citation.find("Article")
        titles = ("ArticleTitle",)
    pmid = None if citation is None else citation.find("PMID")
    if pmid is None or article is None or not (identifier := text_of(pmid)):
        return BadRecord(place, "no PMID or no article in it; remove the record")
    version = pmid.get("Version", "1")
    if not version.isdecimal():
        return BadRecord(place, f"PMID {identifier} has version {version!r}; mend or remove the record")
    title = next((text_of(found) for path in titles if (found := article.find(path)) is not None), "")
    parts = (part for abstract in article.iterchildren("Abstract") for part in abstract.iterchildren("AbstractText"))
    sections = [line for part in parts for line in lines_of(part, _section)]
    return _document(file, identifier, int(version), title, sections)


def _section(label: str | None, text: str) -> str:
    """A section as PubMed prints it, with its label before it."""
    label = " ".join((label or "").split()).rstrip(_ENDS_OF_LABELS)
    text = _LABEL_ENDED_TWICE.sub(r"\1: ", text)
    if not label or not text or label.upper() in _NO_LABEL or text[: len(label) + 1].lower() == f"{label.lower()}:":
        return text
    return f"{label} {text}" if label.endswith("?") else f"{label}: {text}"


def _document(file: SourceFile, identifier: str, version: int, title: str, sections: Sequence[str]) -> Record:
    lines = [line for line in sections if line]
    title = _LABEL_ENDED_TWICE.sub(r"\1: ", title)
    title = "" if title.strip("[]. ").lower() in _NO_TITLE else title
    if not lines:
        return Omitted(NO_ABSTRACT, identifier, version)
    text = "\n".join([title, *lines] if title else lines)
    return Document(identifier, text, file.name, title, version)
