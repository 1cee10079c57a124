"""Options that change or leave out documents of any source. None is on by default, and every one is counted.

A document's fate depends on the document alone, so that the output is the same for any number of workers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bnb_ds.errors import ConfigError, DataError, how_to_install
from data_prep.sources.documents import Document, Omitted, Record
from data_prep.sources.text import find_files, read_documents
from data_prep.sources.units import Source, Unit

# Reasons, as the manifest counts them
SHORT, LONG = "short", "long"
SYMBOLS, DIGITS = "symbols", "digits"
REPEATED_LINES, REPEATED_NGRAMS = "repeated lines", "repeated n-grams"
CONTAMINATED = "contaminated"
LANGUAGE = "other language"

NGRAM_WORDS = 3  # of repetition within a document
LANGUAGE_CHARACTERS = 10_000  # of a document's beginning, from which its language is told
CONTAMINATION_WORDS = 13  # in a row that a document shares with an evaluation set

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\ufeff\ufffd]")
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r" ?\n(?: ?\n)+ ?")
_WORD = re.compile(r"\w+")
_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b", re.ASCII)
# With a country code, an area code in parentheses, or groups: numbers of other kinds have none of these.
_PHONE = re.compile(
    r"(?<![\w.+/-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
    r"|\([2-9]\d{2}\) ?\d{3}[ .-]\d{4}|[2-9]\d{2}([.-])\d{3}\1\d{4})(?![\w/-]|\.\d)",
    re.ASCII,
)
_SHARES = ("max_symbols", "max_digits", "max_repeated_lines", "max_repeated_ngrams")


@dataclass(frozen=True)
class Filters:
    """What the user may choose for any source; None and False leave everything as it is."""

    clean: bool = False  # remove control characters, runs of spaces and runs of blank lines
    mask_pii: bool = False  # put [EMAIL] and [PHONE] in the place of addresses and numbers
    min_characters: int | None = None
    max_characters: int | None = None
    max_symbols: float | None = None  # share of the visible characters that are neither letters nor digits
    max_digits: float | None = None  # share of the visible characters that are digits
    max_repeated_lines: float | None = None  # share of the lines that stand in the document before
    max_repeated_ngrams: float | None = None  # share of the runs of three words that stand in the document before
    language: tuple[str, ...] = ()  # ISO 639 codes: documents in other languages are left out
    decontaminate: tuple[Path, ...] = ()  # evaluation sets: documents that share 13 words in a row are left out

    def check(self) -> None:
        """Raise ConfigError for the first value that is out of range."""
        for name in ("min_characters", "max_characters"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{_flag(name)} must be at least 0, got {value}")
        if None not in (self.min_characters, self.max_characters) and self.max_characters < self.min_characters:
            raise ConfigError(
                f"--max-characters must be at least --min-characters {self.min_characters}, got {self.max_characters}"
            )
        for name in _SHARES:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{_flag(name)} must be at least 0 and at most 1, got {value}")

    @property
    def are_used(self) -> bool:
        """Whether any is on."""
        return self != Filters()


class FilteredSource:
    """Another source, cleaned and filtered.

    Args:
        source: where the documents come from.
        filters: see there.

    Raises:
        ConfigError: a value is out of range, a language is not known, or the library that tells languages is not
            installed.
        DataError: an evaluation set cannot be read, or holds no run of words that is long enough.
    """

    def __init__(self, source: Source, filters: Filters) -> None:
        filters.check()
        self._source = source
        self._filters = filters
        self.files = source.files
        self.latest_wins = source.latest_wins
        self.settings: dict[str, Any] = {**source.settings, **_settings(filters)}
        forbidden: frozenset[str] = frozenset()
        if filters.decontaminate:
            forbidden, self.settings["decontaminate"] = _evaluation_runs(filters.decontaminate)
        self._reasons = _reasons(filters, forbidden)
        if filters.language:
            self.settings["language"] = sorted(set(filters.language))
            self.settings["language_library"] = f"py3langid {version('py3langid')}"

    def units(self) -> list[Unit]:
        """Those of the source."""
        return self._source.units()

    def read(self, unit: Unit) -> Iterator[Record]:
        """The records of the source after cleaning and filtering."""
        for record in self._source.read(unit):
            yield self._filtered(record) if isinstance(record, Document) else record

    def _filtered(self, document: Document) -> Document | Omitted:
        text = clean(document.text) if self._filters.clean else document.text
        if self._filters.mask_pii:
            text = mask_pii(text)
        for reason, applies in self._reasons:
            if applies(text):
                return Omitted(reason, document.id, document.version)
        return document if text is document.text else replace(document, text=text)


def clean(text: str) -> str:
    """The text without control characters and without runs of spaces or blank lines."""
    return _BLANK_LINES.sub("\n\n", _SPACES.sub(" ", _CONTROL.sub("", text))).strip()


def mask_pii(text: str) -> str:
    """The text with ``[EMAIL]`` and ``[PHONE]`` in the place of e-mail addresses and telephone numbers."""
    if "@" in text:
        text = _EMAIL.sub("[EMAIL]", text)
    return _PHONE.sub("[PHONE]", text)


def symbol_share(text: str) -> float:
    """Share of the visible characters that are neither letters, digits nor marks on letters; 0 for an empty text."""
    visible = "".join(text.split())
    return _share(len(visible) - sum(map(len, _WORD.findall(visible))) + visible.count("_"), len(visible))


def digit_share(text: str) -> float:
    """Share of the visible characters that are digits."""
    visible = "".join(text.split())
    return _share(sum(map(str.isdigit, visible)), len(visible))


def repeated_line_share(text: str) -> float:
    """Share of the lines that equal an earlier line of the text, blank lines apart."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    return _share(len(lines) - len(set(lines)), len(lines))


def repeated_ngram_share(text: str) -> float:
    """Share of the runs of three words that equal an earlier run of the text, case and punctuation apart."""
    words = _words(text)
    runs = list(zip(*(words[i:] for i in range(NGRAM_WORDS)), strict=False))
    return _share(len(runs) - len(set(runs)), len(runs))


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _long_runs(text: str) -> Iterator[str]:
    words = _words(text)
    return (" ".join(words[i : i + CONTAMINATION_WORDS]) for i in range(len(words) - CONTAMINATION_WORDS + 1))


def _evaluation_runs(paths: Sequence[Path]) -> tuple[frozenset[str], list[dict[str, Any]]]:
    """Every run of 13 words in evaluation sets, and the manifest's entries of their files."""
    files = find_files(paths)
    entries = [file.manifest_entry() for file in files]
    runs = frozenset(run for document in read_documents(files) for run in _long_runs(document.text))
    if not runs:
        raise DataError(
            f"{', '.join(map(str, paths))}: no document has {CONTAMINATION_WORDS} words; give --decontaminate texts"
        )
    return runs, entries


def _reasons(filters: Filters, forbidden: frozenset[str]) -> list[tuple[str, Callable[[str], bool]]]:
    """What leaves a document out, the cheapest first."""
    found: list[tuple[str, Callable[[str], bool]]] = []
    if (shortest := filters.min_characters) is not None:
        found.append((SHORT, lambda text: len(text) < shortest))
    if (longest := filters.max_characters) is not None:
        found.append((LONG, lambda text: len(text) > longest))
    for reason, share, most in (
        (SYMBOLS, symbol_share, filters.max_symbols),
        (DIGITS, digit_share, filters.max_digits),
        (REPEATED_LINES, repeated_line_share, filters.max_repeated_lines),
        (REPEATED_NGRAMS, repeated_ngram_share, filters.max_repeated_ngrams),
    ):
        if most is not None:
            found.append((reason, lambda text, share=share, most=most: share(text) > most))
    if filters.language:
        wanted, language_of = frozenset(filters.language), _language_teller(filters.language)
        found.append((LANGUAGE, lambda text: language_of(text) not in wanted))
    if forbidden:
        found.append((CONTAMINATED, lambda text: not forbidden.isdisjoint(_long_runs(text))))
    return found


def _language_teller(wanted: Sequence[str]) -> Callable[[str], str]:
    """A function that tells the language of a text, as an ISO 639 code."""
    try:
        from py3langid import langid
    except ImportError:
        raise ConfigError(f"--language: py3langid is not installed; {how_to_install('filters')}") from None
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    known = sorted(set(identifier.labels))
    for code in wanted:
        if code not in known:
            raise ConfigError(f"--language {code}: not known; choose from {', '.join(known)}")
    return lambda text: identifier.classify(text[:LANGUAGE_CHARACTERS])[0]


def _settings(filters: Filters) -> dict[str, Any]:
    """The filters that are on."""
    default = asdict(Filters())
    return {name: value for name, value in asdict(filters).items() if value != default[name]}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
