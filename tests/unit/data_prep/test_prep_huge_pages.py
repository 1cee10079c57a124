"""Dumps with hostile and huge pages: nothing stalls, nothing is lost, and protection against entities stays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bnb_ds.data.tokenization import save_tokenizer
from bnb_ds.errors import DataError
from bnb_ds.shards.reader import TokenShards
from data_prep.sources import xml_input
from data_prep.sources.documents import Document
from data_prep.sources.pubmed import read_xml
from data_prep.sources.units import find_files
from data_prep.sources.wikipedia import KINDS, read_dump
from tests.hostile_pages import write_dump
from tests.prep_helpers import content, prep

HEADER = '<mediawiki xml:lang="en">'


def page(text: str, number: int = 1) -> str:
    return f"<page><title>T</title><id>{number}</id><revision><text>{text}</text></revision></page>"


def read(path: Path) -> list:
    return [record for file in find_files([path], KINDS) for record in read_dump(file)]


def test_a_dump_of_hostile_pages(tmp_path: Path, small_tokenizer) -> None:
    """Every page is counted, and one worker and two write the same bytes."""
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer")
    (tmp_path / "dumps").mkdir()
    pages = [write_dump(tmp_path / "dumps" / f"{i}.xml", 300_000, table_bytes=100_000, seed=i) for i in range(3)]
    for workers in (1, 2):
        output = tmp_path / f"of-{workers}"
        command = ["wikipedia", "--input", tmp_path / "dumps", "--tokenizer", tmp_path / "tokenizer"]
        prep(*command, "--output", output, "--workers", str(workers), "--part-bytes", "400000")
    totals = TokenShards(tmp_path / "of-1").manifest.totals
    assert sum(totals.documents.values()) + sum(totals.skipped.values()) == sum(pages)
    assert set(totals.skipped) <= {"empty", "redirect"}
    assert content(tmp_path / "of-1") == content(tmp_path / "of-2")


def test_a_table_of_more_than_ten_megabytes(tmp_path: Path) -> None:
    """libxml2 refuses such texts unless it is told that they are welcome."""
    table = "{|\n" + f"|-\n| {'1 ' * 1000}\n" * 5250 + "|}\n"
    assert len(table) > 10_500_000
    (tmp_path / "a.xml").write_text(f"{HEADER}{page(f'First.{chr(10)}{table}Last.')}{page('Next.', 2)}</mediawiki>")
    assert [record.text for record in read(tmp_path / "a.xml")] == ["First.\n\nLast.", "Next."]


def test_an_element_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xml_input, "_MOST_BYTES", 1 << 20)
    good = "".join(page("word " * 10_000, number) for number in range(50))
    (tmp_path / "a.xml").write_text(f"{HEADER}{good}</mediawiki>")
    assert len(read(tmp_path / "a.xml")) == 50
    (tmp_path / "b.xml").write_text(f"{HEADER}{page('word ' * 300_000)}</mediawiki>")
    with pytest.raises(DataError, match=r"b.xml: more than 1 MiB without the end of a <page>; fetch the file again"):
        read(tmp_path / "b.xml")


BOMB = (
    '<!ENTITY a "'
    + "ha" * 500
    + '">'
    + "".join(f'<!ENTITY {name} "{f"&{before};" * 50}">' for before, name in zip("abcdef", "bcdefg", strict=True))
)


@pytest.mark.parametrize(
    "before",
    [
        f"<!DOCTYPE mediawiki [{BOMB}]>",
        f'<?xml version="1.0"?>\n<!DOCTYPE mediawiki SYSTEM "x.dtd" [{BOMB}]>',
        f'<?xml version="1.0" encoding="utf-8"?><!-- <mediawiki> --><!DOCTYPE mediawiki [{BOMB}]>',
        f"<?go <mediawiki> ?><!DOCTYPE mediawiki [{BOMB}]>",
        f"{' ' * 20_000}<!DOCTYPE mediawiki [{BOMB}]>",
    ],
)
@pytest.mark.parametrize("place", ["text", "attribute"])
def test_entities_stay_bounded(tmp_path: Path, before: str, place: str) -> None:
    """Whatever stands before a document type, its entities do not expand: the file is refused, or the text is short."""
    text = page("x &g; y") if place == "text" else page("x y").replace("<page>", '<page a="&g;">')
    (tmp_path / "a.xml").write_text(f"{before}{HEADER}{text}</mediawiki>")
    try:
        records = read(tmp_path / "a.xml")
    except DataError as error:
        assert str(error).startswith(f"{tmp_path}/a.xml: ")  # noqa: PT017 - either end is right
    else:
        assert all(isinstance(record, Document) and len(record.text) < 10 for record in records)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-7", "utf-32"])
def test_entities_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    document = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE m [{BOMB}]>{HEADER}{page("&g;")}</mediawiki>'
    (tmp_path / "a.xml").write_bytes(document.encode(encoding))
    with xml_input.open_input(tmp_path / "a.xml") as stream:
        bounded = xml_input._Bounded(stream, find_files([tmp_path / "a.xml"], KINDS)[0], ["page"])
    assert not bounded.has_no_entities


def test_elements_nested_too_deeply(tmp_path: Path) -> None:
    deep = "<b>" * 1500 + "x" + "</b>" * 1500
    record = "<PubmedArticle><MedlineCitation><PMID>{}</PMID><Article><Abstract><AbstractText>{}</AbstractText>"
    record += "</Abstract></Article></MedlineCitation></PubmedArticle>"
    (tmp_path / "a.xml").write_text(
        f"<PubmedArticleSet>{record.format(1, deep)}{record.format(2, 'Fine.')}</PubmedArticleSet>"
    )
    bad, good = read_xml(find_files([tmp_path / "a.xml"], (".xml",))[0])
    assert str(bad) == (f"{tmp_path}/a.xml: record 1: elements are nested too deeply; remove the record from the file")
    assert good.text == "Fine."


@pytest.mark.parametrize("limit", [1000, 20_000])
@pytest.mark.parametrize(("tag", "name"), [("b", "emphasis"), ("mfrac", "formula")])
def test_what_is_nested_too_deeply_does_not_depend_on_the_process(tmp_path: Path, limit: int, tag: str, name: str):
    """Other libraries in a process raise Python's limit of recursion."""
    record = "<PubmedArticle><MedlineCitation><PMID>{}</PMID><Article><Abstract><AbstractText>{}</AbstractText>"
    record += "</Abstract></Article></MedlineCitation></PubmedArticle>"
    texts = [f"<{tag}>" * depth + "x" + f"</{tag}>" * depth for depth in (199, 200)]
    body = "".join(record.format(number, text) for number, text in enumerate(texts, start=1))
    (tmp_path / f"{name}.xml").write_text(f"<PubmedArticleSet>{body}</PubmedArticleSet>")
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(limit)
    try:
        whole, bad = read_xml(find_files([tmp_path / f"{name}.xml"], (".xml",))[0])
    finally:
        sys.setrecursionlimit(before)
    assert whole.text.strip("()") == "x"  # a fraction in a fraction has parentheses
    assert "record 2: elements are nested too deeply; remove the record from the file" in str(bad)
