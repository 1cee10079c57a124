"""Text files of published data sets that are no tables: WMT's sgm, and medical dialogues."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from bnb_ds.common.tables import PlacedRow, RowFault
from bnb_ds.errors import DataError

SGM_SUFFIX = ".sgm"
_SEGMENT = re.compile(r"<seg\b[^>]*>(.*)</seg>", re.IGNORECASE)
#: WMT's files are no valid SGML: only these entities are one, and a lone & is text
_ENTITIES = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&amp;": "&"}
_ENTITY = re.compile("|".join(_ENTITIES))

_BEGIN = re.compile(r"id=(\d+)\s*")
_HEADINGS = ("Description", "Dialogue")
_SPEAKER = re.compile(r"(Patient|Doctor)\s*:\s*(.*)")
#: what iCliniq writes before the question
_MARK_OF_QUESTION = re.compile(r"^Q\.\s*")


def sgm_segments(path: Path, lines: Iterable[str]) -> Iterator[str]:
    """The segments of a file of WMT before 2021 (``newstest2014-deen-src.de.sgm``), in their order.

    As in sacreBLEU, each ``<seg>`` stands on a line of its own; unlike there, entities become what they stand for.

    Raises:
        DataError: a segment does not end on its line.
    """
    for number, line in enumerate(lines, start=1):
        if "<seg" not in line.lower():
            continue
        found = _SEGMENT.search(line)
        if found is None:
            raise DataError(
                f"{path}: line {number} begins a <seg> that does not end there; write each segment on one line, or give"
                " plain text with one sentence a line"
            )
        yield " ".join(_ENTITY.sub(lambda entity: _ENTITIES[entity[0]], found[1]).split())


def is_dialogue(line: str) -> bool:
    """Whether the first line of a text file says that medical dialogues follow."""
    return _BEGIN.fullmatch(line) is not None


def dialogue_rows(path: Path, lines: Iterable[str]) -> Iterator[PlacedRow]:
    """Rows of MedDialog's text files, the form in which iCliniq and HealthCareMagic were published.

    A record is ``id=NUMBER``, an address, ``Description`` with the short question, and ``Dialogue`` with the turns of
    ``Patient:`` and ``Doctor:``. A row has the columns ``id``, ``summary`` (the description, without its ``Q.``),
    ``document`` (the whole dialogue, as in BioBART's scripts), ``patient`` and ``doctor`` (the turns of one of them).
    """
    begin = 0
    record: list[str] = []
    for number, line in enumerate(lines, start=1):
        if is_dialogue(line):
            if record:
                yield _dialogue(path, begin, record)
            begin, record = number, []
        record.append(line.strip())
    if record:
        yield _dialogue(path, begin, record)


def _dialogue(path: Path, begin: int, record: list[str]) -> PlacedRow:
    place = f"{path}: record of line {begin}"
    if not all(heading in record for heading in _HEADINGS):
        missing = next(heading for heading in _HEADINGS if heading not in record)
        return place, RowFault("no whole dialogues", f"{place}: has no line {missing!r}; correct it")
    description, dialogue = (record.index(heading) for heading in _HEADINGS)
    question = " ".join(" ".join(record[description + 1 : dialogue]).split())
    turns: dict[str, list[str]] = {"Patient": [], "Doctor": []}
    speaker = None
    for line in record[dialogue + 1 :]:
        said = _SPEAKER.fullmatch(line)
        if said is not None:
            speaker, line = said[1], said[2]
        if speaker is not None and line:
            turns[speaker].append(line)
    number = _BEGIN.fullmatch(record[0])
    return place, {
        "id": number[1] if number else str(begin),
        "summary": _MARK_OF_QUESTION.sub("", question),
        "document": " ".join(" ".join(record[dialogue + 1 :]).split()),
        "patient": " ".join(turns["Patient"]),
        "doctor": " ".join(turns["Doctor"]),
    }
