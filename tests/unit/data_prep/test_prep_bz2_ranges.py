"""Dumps whose bz2 streams end anywhere: in a page, in a tag, in a character."""

from __future__ import annotations

import bz2
import random
from itertools import pairwise
from pathlib import Path

import pytest
from lxml import etree

from bnb_ds.data.tokenization import save_tokenizer
from bnb_ds.errors import DataError
from bnb_ds.shards.reader import TokenShards
from data_prep.sources import bz2_ranges, wikipedia
from data_prep.sources.bz2_ranges import open_range, stream_ranges
from data_prep.sources.units import SourceFile
from tests.prep_helpers import content, prep

HEADER = b'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><siteinfo><namespaces/></siteinfo>\n'


def page(number: int, text: str) -> bytes:
    """A page of the main namespace."""
    return (
        f"  <page>\n<title>T{number}</title><ns>0</ns><id>{number}</id><revision><id>1</id><model>wikitext</model>"
        f"<text>{text}</text></revision></page>\n"
    ).encode()


def dump(path: Path, pages: list[bytes], cuts: list[int]) -> Path:
    """A dump in streams that end at these places."""
    whole = b"".join([HEADER, *pages, b"</mediawiki>\n"])
    places = [0, *sorted(cuts), len(whole)]
    streams = [bz2.compress(whole[begin:end], 1) for begin, end in pairwise(places)]
    path.write_bytes(b"".join(streams))
    return path


def pages_of(path: Path, range_bytes: int) -> list[list[str]]:
    """The ids of the pages in each range; texts are compared on the way."""
    file = SourceFile(path, path.name)
    found = []
    for unit in stream_ranges(file, 0, range_bytes):
        if unit.end is None:
            data = bz2.decompress(path.read_bytes())
        else:
            with open_range(file, unit) as stream:
                data = stream.read()
        pages = etree.fromstring(data).findall("{*}page")
        assert all(found.findtext("{*}revision/{*}text").startswith(f"{found.findtext('{*}id')} ") for found in pages)
        found.append([found.findtext("{*}id") for found in pages])
    return found


@pytest.mark.parametrize("seed", range(20))
def test_every_page_is_in_one_range_wherever_streams_end(tmp_path: Path, monkeypatch, seed: int) -> None:
    """Streams of every length down to a byte, ranges of every size, pieces of every size."""
    draw = random.Random(seed)
    monkeypatch.setattr(bz2_ranges, "_MOST_BYTES", draw.choice([1, 5, 1000, 1 << 20]))
    monkeypatch.setattr(bz2_ranges, "_BLOCK_BYTES", draw.choice([10, 97, 1 << 18]))
    pages = [page(i, f"{i} é &lt;page> {'x' * draw.randint(0, 300)}") for i in range(40)]
    length = len(HEADER) + sum(map(len, pages))
    cuts = draw.sample(range(1, length), draw.choice([3, 40, 300]))
    path = dump(tmp_path / "a.xml.bz2", pages, cuts)
    found = pages_of(path, draw.choice([1, 500, 2000]))
    assert [number for numbers in found for number in numbers] == [str(i) for i in range(40)]
    assert len(found) > 1 or len(cuts) == 3


def test_streams_that_end_at_every_place_of_a_tag(tmp_path: Path) -> None:
    pages = [page(i, f"{i} x") for i in range(4)]
    begin = len(HEADER) + len(pages[0]) + len(pages[1])
    for cut in range(begin - 3, begin + 12):
        found = pages_of(dump(tmp_path / "a.xml.bz2", pages, [cut]), 10)
        assert found in ([["0", "1"], ["2", "3"]], [["0", "1", "2"], ["3"]])
        assert (found[0] == ["0", "1"]) == (cut <= begin + 2)  # two spaces, then the tag


def test_pages_longer_than_ranges_and_ranges_without_pages(tmp_path: Path) -> None:
    draw = random.Random(0)
    pages = [page(i, f"{i} " + draw.randbytes(3000).hex()) for i in range(5)]
    cuts = list(range(500, len(HEADER) + sum(map(len, pages)), 500))
    found = pages_of(dump(tmp_path / "a.xml.bz2", pages, cuts), 1)
    assert [number for numbers in found for number in numbers] == list("01234")
    assert [] in found


@pytest.fixture
def tokenizer(small_tokenizer, tmp_path: Path) -> Path:
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_prep_of_streams_that_end_in_pages(tmp_path: Path, tokenizer: Path, small_texts, monkeypatch) -> None:
    """In parallel and not, the documents of the same dump in one stream."""
    texts = [text.replace("&", "&amp;").replace("<", "&lt;") for text in small_texts[:80]]
    pages = [page(i, text) for i, text in enumerate(texts, start=1)]
    whole = dump(tmp_path / "one" / "a.xml.bz2", pages, []) if (tmp_path / "one").mkdir() is None else None
    (tmp_path / "many").mkdir()
    length = len(HEADER) + sum(map(len, pages))
    parts = dump(tmp_path / "many" / "a.xml.bz2", pages, list(range(900, length, 900)))
    command = ["wikipedia", "--tokenizer", tokenizer, "--part-bytes", "1"]
    prep(*command, "--input", whole, "--output", tmp_path / "a")
    monkeypatch.setattr(wikipedia, "_RANGE_BYTES", 4000)
    for workers in (1, 2):
        prep(*command, "--input", parts, "--output", tmp_path / f"b{workers}", "--workers", workers)
    assert content(tmp_path / "b1") == content(tmp_path / "b2")
    one, many = TokenShards(tmp_path / "a"), TokenShards(tmp_path / "b1")
    assert len(many.manifest.shards) > 3
    assert [one.document(i).tolist() for i in range(len(one))] == [many.document(i).tolist() for i in range(len(many))]


@pytest.mark.parametrize("cut", [5, 60, 400])
def test_truncated(tmp_path: Path, tokenizer: Path, small_texts, monkeypatch, cut: int) -> None:
    pages = [page(i, f"{i} text") for i in range(60)]
    path = dump(tmp_path / "a.xml.bz2", pages, list(range(700, len(HEADER) + 9000, 700)))
    path.write_bytes(path.read_bytes()[:-cut])
    monkeypatch.setattr(wikipedia, "_RANGE_BYTES", 600)
    message = r"a.xml.bz2: (truncated: the compressed data end too early|line \d+: not well-formed XML)"
    with pytest.raises(DataError, match=message):
        prep("wikipedia", "--input", path, "--tokenizer", tokenizer, "--output", tmp_path / "s")


def test_dump_without_the_end_of_its_root(tmp_path: Path, tokenizer: Path, monkeypatch) -> None:
    """Whole streams are missing at the end, so that nothing is wrong with those that are there."""
    pages = [page(i, f"{i} text") for i in range(60)]
    path = tmp_path / "a.xml.bz2"
    path.write_bytes(b"".join(bz2.compress(piece) for piece in [HEADER, *pages, b"\n"]))
    monkeypatch.setattr(wikipedia, "_RANGE_BYTES", 600)
    with pytest.raises(DataError, match=r"a.xml.bz2: line \d+: not well-formed XML"):
        prep("wikipedia", "--input", path, "--tokenizer", tokenizer, "--output", tmp_path / "s")
