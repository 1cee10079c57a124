"""Pages of dumps: which revision counts, what is a redirect, and whose names hold."""

from __future__ import annotations

import re
from pathlib import Path

from data_prep.sources.documents import Document, Omitted
from tests.unit.data_prep.test_prep_wikipedia import page, read, write


def test_the_newest_revision_counts(tmp_path: Path) -> None:
    def revision(day: str, text: str, deleted: str = "") -> str:
        return f"<revision><timestamp>2020-01-{day}T00:00:00Z</timestamp><text{deleted}>{text}</text></revision>"

    def history(identifier: int, *revisions: str) -> str:
        return f"<page><title>T</title><ns>0</ns><id>{identifier}</id>{''.join(revisions)}</page>"

    hidden = ' deleted="deleted"'
    path = write(
        tmp_path / "history.xml",
        history(1, revision("01", "old"), revision("02", "new")),
        history(2, revision("02", "new"), revision("01", "old")),
        history(3, revision("01", "first"), revision("01", "second")),
        history(4, revision("01", "kept"), revision("02", "", hidden)),
        history(5, revision("01", "#REDIRECT [[X]]"), revision("02", "article")),
        history(6, revision("01", "article"), revision("02", "#redirect [[X]]")),
        history(7),
    )
    found = [record.text if isinstance(record, Document) else record.reason for record in read(path)]
    assert found == ["new", "new", "second", "kept", "article", "redirect", ""]


def test_redirects_of_old_dumps_in_their_own_words(tmp_path: Path) -> None:
    words = ["#WEITERLEITUNG [[X]]", "#перенаправление [[X]]", " #Redirect: [[X]]", "#転送[[X]]", "#OTHER [[X]] list"]
    path = write(tmp_path / "a.xml", *(page("T", text, i) for i, text in enumerate(words)))
    assert [isinstance(record, Omitted) for record in read(path)] == [True, True, True, True, False]


def test_the_dump_names_its_namespaces(tmp_path: Path) -> None:
    text = "[[Файл:a|мини]][[Bild:b|mini]] [[Image:c]][[Категория:d]][[Kategorie:e]] {{lang-en|word}}"
    own = write(tmp_path / "own.xml", page("T", text))
    assert read(own)[0].text == "mini Kategorie:e English: word"  # no header says the language: English
    (tmp_path / "ru.xml").write_text(own.read_text().replace("<mediawiki ", '<mediawiki xml:lang="ru" '))
    assert read(tmp_path / "ru.xml")[0].text == "mini Kategorie:e word"
    (tmp_path / "named.xml").write_text(own.read_text().replace("<siteinfo>", "<siteinfo><dbname>ruwiki</dbname>"))
    assert read(tmp_path / "named.xml")[0].text == "mini Kategorie:e word"
    without = re.sub("<siteinfo>.*</siteinfo>", "", own.read_text())
    (tmp_path / "without.xml").write_text(without)
    assert read(tmp_path / "without.xml")[0].text == "English: word"
