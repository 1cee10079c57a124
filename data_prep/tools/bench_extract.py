"""``bnb-ds bench prep --extract``: wikitext to plain text beside other extractors, speed and accuracy in one table.

The others are taken where they are installed: ``mwparserfromhell``, ``wikitextparser``, ``gensim`` and
``wikiextractor``. Each gets the same source of the same articles, in this process, in turn and several times over.
"""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bnb_ds.common.markdown import markdown_table
from bnb_ds.errors import ConfigError, DataError
from data_prep.sources.text import find_files
from data_prep.sources.units import SourceFile
from data_prep.sources.wikipedia import articles

OURS = "prep wikipedia"
_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n+")
_LIST_LINE = re.compile(r"^[*#:;].*\n", re.MULTILINE)
_LEAST_SECONDS = 0.2  # of one timing: few pages are extracted again until then, for the clock is no finer than 10 ms
_LEAST_WORDS = 4  # of a sentence that is compared: shorter ones are headings and entries of lists

Extract = Callable[[str], str]


@dataclass(frozen=True)
class Shares:
    """Agreement of one text with a reference; each between 0 and 1."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Harmonic mean of both."""
        return 2 * self.precision * self.recall / max(self.precision + self.recall, 1e-9)


def bench_extract(
    inputs: Sequence[Path],
    reference: Sequence[Path] | None,
    *,
    rounds: int,
    contenders: Sequence[str] | None,
    without_lists: bool = False,
) -> Iterator[str]:
    """Extract the articles of dumps with every contender, and yield the lines of a table in Markdown.

    Speed is in megabytes of wikitext (UTF-8) per CPU second of this process, the median over the rounds. Accuracy is
    over the articles whose title the reference holds: words in the same order (the longest common subsequence of the
    whole texts) and sentences of at least four words that stand in both, each as the mean share over the articles. With
    ``without_lists`` the lines of lists are taken out of the source first, for a reference that holds none.

    Args:
        inputs: MediaWiki dumps.
        reference: files with columns ``title`` and ``text``: what the articles should read; None measures speed alone.
        rounds: how often each contender runs.
        contenders: names from :data:`CONTENDERS`; None takes all that are installed.
        without_lists: measure without the lines of lists.

    Raises:
        ConfigError: there is no contender of that name, it is not installed, or ``rounds`` is below 1.
        DataError: a dump cannot be read, or shares no article with the reference.
    """
    if rounds < 1:
        raise ConfigError(f"--rounds must be at least 1, got {rounds}")
    extractors = {name: CONTENDERS[name][1]() for name in _chosen(contenders)}
    change = _without_lists if without_lists else str
    pages = {document.title: change(document.text) for file in _dumps(inputs) for document in articles(file)}
    num_bytes = sum(len(text.encode()) for text in pages.values())
    texts: dict[str, dict[str, str]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in extractors}
    for _ in range(rounds):
        for name, extract in extractors.items():
            texts[name], passed = _timed(extract, pages)
            seconds[name].append(passed)
    there = {} if reference is None else _reference(reference, pages)
    yield f"{len(pages):,} articles, {num_bytes / 1e6:.1f} MB of wikitext, median of {rounds} rounds in turn; " + (
        f"{len(there):,} of the articles are in the reference" if there else "no reference"
    )
    rows = [_row(name, num_bytes, seconds, texts[name], there) for name in extractors]
    columns = ["", "MB/CPU s", "spread of speed", "times the first", "words"]
    if there:
        columns += [f"{what} {share}" for what in ("words", "sentences") for share in ("precision", "recall", "F1")]
    yield from markdown_table(columns, rows).splitlines()


def _timed(extract: Extract, pages: dict[str, str]) -> tuple[dict[str, str], float]:
    """The texts, and the CPU seconds of one extraction of all pages."""
    num_runs, start = 0, time.process_time()
    while (passed := time.process_time() - start) < _LEAST_SECONDS or not num_runs:
        texts = {title: extract(text) for title, text in pages.items()}
        num_runs += 1
    return texts, passed / num_runs


def word_shares(ours: str, there: str) -> Shares:
    """Words that stand in both texts in the same order, as shares of ours and of the other's."""
    from rapidfuzz.distance import LCSseq

    mine, theirs = _words(ours), _words(there)
    common = LCSseq.similarity(mine, theirs)
    return Shares(common / max(len(mine), 1), common / max(len(theirs), 1))


def sentence_shares(ours: str, there: str) -> Shares:
    """Sentences that stand in both texts word for word; case, punctuation and their order do not count."""
    mine, theirs = Counter(_sentences(ours)), Counter(_sentences(there))
    common = (mine & theirs).total()
    return Shares(common / max(mine.total(), 1), common / max(theirs.total(), 1))


def _without_lists(source: str) -> str:
    """Wikitext without the lines of lists, but for those that begin or end a template or a link of several lines."""

    def is_whole(line: str) -> bool:
        return line.count("{{") == line.count("}}") and line.count("[[") == line.count("]]")

    return _LIST_LINE.sub(lambda match: "" if is_whole(match[0]) else match[0], source)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _sentences(text: str) -> Iterator[tuple[str, ...]]:
    for sentence in _SENTENCE_END.split(text):
        words = tuple(_words(sentence))
        if len(words) >= _LEAST_WORDS:
            yield words


def _row(
    name: str, num_bytes: int, seconds: dict[str, list[float]], texts: dict[str, str], there: dict[str, str]
) -> tuple[str, ...]:
    first = next(iter(seconds.values()))
    ratio = statistics.median(other / own for other, own in zip(first, seconds[name], strict=True))
    speeds = sorted(num_bytes / 1e6 / value for value in seconds[name])
    row = [name, f"{statistics.median(speeds):.2f}", f"{speeds[0]:.2f} to {speeds[-1]:.2f}", f"{ratio:.2f}"]
    row.append(f"{sum(len(_words(text)) for text in texts.values()):,}")
    if there:
        for measure in (word_shares, sentence_shares):
            found = [measure(texts[title], text) for title, text in there.items()]
            row.append(f"{statistics.mean(shares.precision for shares in found):.1%}")
            row.append(f"{statistics.mean(shares.recall for shares in found):.1%}")
            row.append(f"{statistics.mean(shares.f1 for shares in found):.1%}")
    return tuple(row)


def _dumps(inputs: Sequence[Path]) -> list[SourceFile]:
    from data_prep.sources import units

    return units.find_files(inputs, (".xml",))


def _reference(paths: Sequence[Path], pages: dict[str, str]) -> dict[str, str]:
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    files = [str(file.path) for file in find_files(paths)]
    try:
        table = ds.dataset(files, format="parquet").to_table(
            columns=["title", "text"], filter=pc.field("title").isin(list(pages))
        )
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{files[0]}: no parquet with columns title and text ({reason}); mend --reference") from None
    found = dict(zip(table["title"].to_pylist(), table["text"].to_pylist(), strict=True))
    if not found:
        raise DataError(f"{files[0]}: holds none of the {len(pages)} articles; choose another --reference")
    return found


def _chosen(names: Sequence[str] | None) -> list[str]:
    if names is None:
        return [name for name, (module, _) in CONTENDERS.items() if find_spec(module)]
    for name in names:
        if name not in CONTENDERS:
            raise ConfigError(f"--contenders: no {name!r}; choose from {', '.join(CONTENDERS)}")
        if not find_spec(module := CONTENDERS[name][0]):
            raise ConfigError(f"--contenders: {name} needs {module}; `pip install {module}` to compare")
    return list(names)


def _ours() -> Extract:
    from data_prep.sources.wikitext import plain_text

    return plain_text


def _mwparserfromhell() -> Extract:
    import mwparserfromhell

    return lambda text: mwparserfromhell.parse(text).strip_code()


def _wikitextparser() -> Extract:
    import wikitextparser

    return lambda text: wikitextparser.parse(text).plain_text()


def _gensim() -> Extract:
    from gensim.corpora.wikicorpus import filter_wiki

    return filter_wiki


def _wikiextractor() -> Extract:
    from wikiextractor.extract import Extractor, clean, compact

    extractor = Extractor("1", "1", "", "", "")

    def extract(text: str) -> str:
        # Its pipeline without templates, whose expansion needs the whole dump; entities are left as characters.
        return "\n".join(compact(clean(extractor, text, html_safe=False), extractor=extractor))

    return extract


#: what is compared: the module it needs, and what makes its function
CONTENDERS: dict[str, tuple[str, Callable[[], Extract]]] = {
    OURS: ("data_prep", _ours),
    "mwparserfromhell strip_code": ("mwparserfromhell", _mwparserfromhell),
    "wikitextparser plain_text": ("wikitextparser", _wikitextparser),
    "gensim filter_wiki": ("gensim", _gensim),
    "wikiextractor": ("wikiextractor", _wikiextractor),
}
