"""Wikipedia: dumps as text without debris, rows, multistream ranges."""

from __future__ import annotations

import bz2
import json
import re
import statistics
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rapidfuzz.distance import LCSseq

from bnb_ds.errors import ConfigError, DataError
from bnb_ds.shards import SPLITS, TokenShards
from bnb_ds.tokenization import load_tokenizer, save_tokenizer
from data_prep import wikipedia
from data_prep.documents import BadRecord, Document, Omitted, is_held_out
from data_prep.units import find_files
from data_prep.wikipedia import KINDS, WikipediaSource, read_dump
from data_prep.wikitext import plain_text
from tests.prep_helpers import content, prep

DEBRIS = re.compile(
    r"\{\{|\}\}|\{\||\|\}|\[\[|\]\]|''|<!--|-->|</?(?:ref|br|div|span|table|gallery|small|sup|sub|math)\b|"
    r"^\s*[|!]|^=+.*=+$|\b(?:thumb|frame|upright)\s*\||\b\d+px\b|\b(?:File|Image|Category):|__[A-Z]+__|"
    r"(?:style|class|align|colspan|rowspan|width)\s*=|&(?:nbsp|ndash|lt|gt|amp);|\bcite (?:web|book|journal)\b",
    re.MULTILINE | re.IGNORECASE,
)

CASES = {
    "'''Bold''' and ''italic'' [[link]]s, [[Paris|the city]], [[:Category:X]].": (
        "Bold and italic links, the city, Category:X."
    ),
    "Text{{Infobox|a={{nested|{{more}}}}}}.<ref name=x/><ref>{{cite web|url=x}} [http://a b]</ref> End.": "Text. End.",
    "A [[File:x.jpg|thumb|100px|A [[nested]] caption {{t}}]]B [[Category:C|key]][[fr:Lien]]": "A B",
    "One\n{| class=x\n! a\n|-\n| b || {{c|\n{| \n| inner\n|}\n}}\n|}\nTwo": "One\n\nTwo",
    "== Head ==\n* one\n# two\n: three\n": "Head\n\none\ntwo\nthree",
    "x<!-- hidden\n --> y<br/>z &amp; &eacute;&nbsp;w": "x y\n\nz & é w",
    "{{unclosed [[File:a.jpg|thumb|b and ]] text <div class='x'>in</div>": "unclosed text\nin",
    "Born (; {{lang-ru|Иван}}), {{convert|5|km|mi}} {{nowrap|a b}} {{as of|2014}} 1{{ndash}}2": (
        "Born (Russian: Иван), 5 km a b As of 2014 1\u20132"
    ),
    "<gallery>\nFile:a.jpg|b\n</gallery><math>x^2</math>[http://x.org site] [http://y.org]": "site",
    "a | b": "a | b",
    "": "",
}


@pytest.mark.parametrize("wikitext", CASES, ids=range(len(CASES)))
def test_wikitext(wikitext: str) -> None:
    assert plain_text(wikitext) == CASES[wikitext]


def page(title: str, text: str, identifier: int = 1, extra: str = "<ns>0</ns>") -> str:
    return (
        f"<page><title>{title}</title>{extra}<id>{identifier}</id><revision><id>99</id>"
        f'<model>wikitext</model><text xml:space="preserve">{text}</text></revision></page>\n'
    )


HEADER = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><siteinfo><namespaces>'
    '<namespace key="6">Файл</namespace><namespace key="14">Категория</namespace></namespaces></siteinfo>\n'
)


def write(path: Path, *pages: str) -> Path:
    path.write_text(HEADER + "".join(pages) + "</mediawiki>", encoding="utf-8")
    return path


def read(path: Path) -> list:
    return [record for file in find_files([path], KINDS) for record in read_dump(file)]


def test_what_is_an_article(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.xml",
        page("One", "[[Файл:x.jpg|thumb|y]]Text of [[one]].", 11),
        page("Talk:One", "x", 12, "<ns>1</ns>"),
        page("Uno", "#REDIRECT [[One]]", 13),
        page("Eins", "x", 14, '<ns>0</ns><redirect title="One" />'),
        page("Old form without namespaces", "Two", 15, ""),
        page("Script", "x", 16).replace("wikitext", "javascript"),
        page("Nothing", "", 17),
        page("No id", "x").replace("<id>1</id>", ""),
    )
    found = read(path)
    assert found[:7] == [
        Document("11", "Text of one.", "a.xml", "One"),
        Omitted("of another namespace"),
        Omitted("redirect"),
        Omitted("redirect"),
        Document("15", "Two", "a.xml", "Old form without namespaces"),
        Omitted("not wikitext"),
        Document("17", "", "a.xml", "Nothing"),
    ]
    assert found[7] == BadRecord(f"{path}: page 8", "'No id' has no id; remove the page")


@pytest.fixture
def tokenizer(small_tokenizer, tmp_path: Path) -> Path:
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def multistream(tmp_path: Path, small_texts: list[str]) -> Path:
    """A dump whose header and pages are in streams of their own, as Wikipedia's are."""
    escaped = [text.replace("&", "&amp;").replace("<", "&lt;") for text in small_texts]
    pages = [page(f"T{i}", text, i) for i, text in enumerate(escaped, start=1)]
    groups = ["".join(pages[i : i + 10]) for i in range(0, len(pages), 10)]
    path = tmp_path / "x-pages-articles-multistream.xml.bz2"
    path.write_bytes(b"".join(bz2.compress(part.encode()) for part in [HEADER, *groups, "</mediawiki>"]))
    return path


def test_multistream_ranges_read_the_same(multistream: Path, monkeypatch: pytest.MonkeyPatch, small_texts) -> None:
    whole = read(multistream)
    assert len(whole) == len(small_texts)
    for size in (1, 3000, 20_000):
        monkeypatch.setattr(wikipedia, "_RANGE_BYTES", size)
        source = WikipediaSource(find_files([multistream], KINDS), None, {})
        units = source.units()
        assert len(units) > 1
        assert sum(unit.num_bytes for unit in units) == multistream.stat().st_size
        assert [record for unit in units for record in source.read(unit)] == whole


def test_multistream_in_parallel(multistream: Path, tokenizer: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(wikipedia, "_RANGE_BYTES", 5000)
    command = ["wikipedia", "--input", multistream, "--tokenizer", tokenizer, "--part-bytes", "1"]
    for workers in (1, 2):
        prep(*command, "--output", tmp_path / f"{workers}", "--workers", workers)
    assert content(tmp_path / "1") == content(tmp_path / "2")
    manifest = TokenShards(tmp_path / "1").manifest
    assert len(manifest.sources) == 1
    assert manifest.sources[0].bytes == multistream.stat().st_size
    assert len(manifest.shards) > 4


@pytest.mark.parametrize("cut", [50, 5000])
def test_truncated_bz2(multistream: Path, tokenizer: Path, tmp_path: Path, cut: int, monkeypatch) -> None:
    multistream.write_bytes(multistream.read_bytes()[:-cut])
    message = r"multistream.xml.bz2: (truncated: the compressed data end too early|line \d+: not well-formed XML)"
    for size in (1 << 25, 5000):
        monkeypatch.setattr(wikipedia, "_RANGE_BYTES", size)
        with pytest.raises(DataError, match=message):
            prep("wikipedia", "--input", multistream, "--tokenizer", tokenizer, "--output", tmp_path / f"{size}")


def test_rows_of_every_form_are_equal(tmp_path: Path, tokenizer: Path, small_texts) -> None:
    rows = [{"id": str(i), "url": "u", "title": f"t{i}", "text": text} for i, text in enumerate(small_texts)]
    table = pa.Table.from_pylist(rows)
    for name in ("parquet", "stream", "file", "jsonl"):
        (tmp_path / name).mkdir()
    pq.write_table(table, tmp_path / "parquet" / "a.parquet")
    (tmp_path / "jsonl" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, new in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        with new(str(tmp_path / name / "a.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=50)
    shards = []
    for name in ("parquet", "stream", "file", "jsonl"):
        output = tmp_path / f"{name}-shards"
        prep("wikipedia", "--input", tmp_path / name, "--tokenizer", tokenizer, "--output", output)
        shards.append({key: data for key, data in content(output).items() if key != "manifest.json"})
    assert all(found == shards[0] for found in shards[1:])
    output = tmp_path / "hub-shards"
    prep("wikipedia", "--dataset", tmp_path / "parquet", "--tokenizer", tokenizer, "--output", output)
    assert {key: data for key, data in content(output).items() if key != "manifest.json"} == shards[0]
    source = TokenShards(output).manifest.sources[0]
    assert (source.name, source.bytes) == ("parquet/train#0", sum(len(text.encode()) for text in small_texts))


def test_where_to_read_from(tmp_path: Path, tokenizer: Path) -> None:
    rest = ["--tokenizer", tokenizer, "--output", tmp_path / "s"]
    with pytest.raises(ConfigError, match="prep wikipedia needs either --dataset NAME or --input PATH"):
        prep("wikipedia", *rest)
    with pytest.raises(DataError, match=r"nowhere: datasets cannot load it \(.*\); check --dataset and --config"):
        prep("wikipedia", "--dataset", tmp_path / "nowhere", *rest)
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: no column 'text'; choose --text-column from body"):
        prep("wikipedia", "--input", tmp_path / "a.parquet", *rest)
    (tmp_path / "a.arrow").write_bytes(b"no arrow at all")
    with pytest.raises(DataError, match=r"a.arrow: not a readable arrow file \(.*\); restore or convert it"):
        prep("wikipedia", "--input", tmp_path / "a.arrow", *rest)


def test_clean_and_short(tmp_path: Path, tokenizer: Path) -> None:
    pq.write_table(
        pa.table({"id": ["1", "2"], "text": ["a\x00 \t b\n \n\n\nc  function", "short"]}), tmp_path / "a.parquet"
    )
    command = ["wikipedia", "--input", tmp_path / "a.parquet", "--tokenizer", tokenizer, "--output", tmp_path / "s"]
    prep(*command, "--clean", "--min-characters", "8", "--holdout", "0")
    manifest = TokenShards(tmp_path / "s").manifest
    assert manifest.totals.skipped == {"short": 1}
    assert (manifest.settings["clean"], manifest.settings["min_characters"]) == (True, 8)


# Real dumps


def real_articles(shared_data: Path) -> list[Document]:
    files = sorted((shared_data / "wikipedia").glob("*.xml.bz2"))
    assert len(files) == 3
    records = [record for file in files for record in read(file)]
    return [record for record in records if isinstance(record, Document)]


@pytest.fixture(scope="module")
def articles(shared_data: Path) -> list[Document]:
    return real_articles(shared_data)


def test_no_debris_is_left(articles: list[Document]) -> None:
    assert len(articles) == 112
    found = [
        (article.title, article.text[max(match.start() - 30, 0) : match.end() + 30])
        for article in articles
        for match in DEBRIS.finditer(article.text)
    ]
    assert found == []


def test_text_agrees_with_another_extraction(articles: list[Document], shared_data: Path) -> None:
    """Edits between the dates explain most of what is missing: see RESULTS.md for how much."""
    table = pq.read_table(shared_data / "wikipedia" / "articles-2015", columns=["title", "text"])
    others = dict(zip(*(column.to_pylist() for column in table), strict=True))
    shares = []
    for article in articles:
        words = re.findall(r"\w+", others.get(article.title, "")[:2000].lower())
        if words and article.source.startswith("enwiki-pages"):
            shares.append(LCSseq.similarity(words, re.findall(r"\w+", article.text.lower())) / len(words))
    assert len(shares) == 106
    assert statistics.median(shares) > 0.95
    assert sum(share > 0.85 for share in shares) > 0.75 * len(shares)


def test_dumps_become_shards(articles: list[Document], shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "tokenizers" / "bert-base-uncased"
    inputs = sorted((shared_data / "wikipedia").glob("*.xml.bz2"))
    prep("wikipedia", "--input", *inputs, "--tokenizer", path, "--output", tmp_path / "s", "--holdout", "0.05")
    tokenizer = load_tokenizer(path)
    splits = {split: TokenShards(tmp_path / "s", split, verify_hashes=True) for split in SPLITS}
    place = dict.fromkeys(SPLITS, 0)
    for article in articles:
        split = "heldout" if is_held_out(article.id, 0.05) else "train"
        stored = splits[split].document(place[split])
        place[split] += 1
        expected = tokenizer(article.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tokenizer.decode(stored) == tokenizer.decode(expected)
    assert place == {split: len(shards) for split, shards in splits.items()}
