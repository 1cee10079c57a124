"""Wikipedia: dumps as text without debris, rows, multistream ranges."""

from __future__ import annotations

import bz2
import json
import re
import statistics
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lxml import etree
from rapidfuzz.distance import LCSseq

from bnb_ds.data.tokenization import load_tokenizer, save_tokenizer
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.shards.manifest import SPLITS
from bnb_ds.shards.reader import TokenShards
from data_prep.sources import wikipedia
from data_prep.sources.documents import BadRecord, Document, Omitted, is_held_out
from data_prep.sources.units import find_files
from data_prep.sources.wikipedia import KINDS, WikipediaSource, read_dump
from data_prep.sources.wikitext import plain_text
from tests.prep_helpers import content, prep

pytestmark = pytest.mark.slow

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
    "x<!-- hidden\n --> y<br/>z &amp; &eacute;&nbsp;w": "x y\nz & é w",
    "{{unclosed [[File:a.jpg|thumb|b and ]] text <div class='x'>in</div>": "unclosed text\nin",
    "Born (; {{lang-ru|Иван}}), {{convert|5|km|mi}} {{nowrap|a b}} {{as of|2014}} 1{{ndash}}2": (
        "Born (Russian: Иван), 5 km a b As of 2014 1\u20132"
    ),
    "{{convert|5|-|10|km2}}, {{convert|5|ft|2|in|m}}, {{convert|3|by|4|sqmi|0}}, {{convert|7}}": (
        "5\u201310 km2, 5 ft 2 in, 3 by 4 sq mi, 7"
    ),
    "{{as of|2015|6|30}} {{As of|2015|6|30|df=US|lc=y}} {{as of|2015|6|since=y}} {{as of|2014|alt=in 2014}}": (
        "As of 30 June 2015 as of June 30, 2015 Since June 2015 in 2014"
    ),
    "{{birth date|1879|3|14}}, {{Birth date and age|1879|3|14|df=yes}}, {{OldStyleDate|February 2|1905|January 20}}": (
        "March 14, 1879, 14 March 1879, February 2 [O.S. January 20] 1905"
    ),
    "{{nowrap|1=''E'' = ''mc''<sup>2</sup>}} {{chem|C|''n''|H|2''n''+2}} {{frac|2}} {{frac|1|3|4}}{{frac}}": (
        "E = mc2 CnH2n+2 1\u20442 1 3\u20444"
    ),
    "{{circa|1900|1950}} {{fl.|10|20}} {{reign|1|2}} {{hlist|a|b}} {{angbr|a}}{{angbr}} {{IPA|/a/}} {{sic|hte}}": (
        "c. 1900 \u2013 c. 1950 fl. 10\u201320 r. 1\u20132 a, b \u27e8a\u27e9 /a/ hte [sic]"
    ),
    "{{nihongo|Aikido|合気道|aikidō}} {{nihongo||道}}{{nihongo}} {{bquote|text=Q}} {{lang-xx|w}} {{formatnum:12}}": (
        "Aikido (合気道, aikidō) 道 Q w 12"
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
        shards.append({key: data for key, data in content(output).items() if not key.startswith("manifest.json")})
    assert all(found == shards[0] for found in shards[1:])
    output = tmp_path / "hub-shards"
    prep("wikipedia", "--dataset", tmp_path / "parquet", "--tokenizer", tokenizer, "--output", output)
    assert {key: data for key, data in content(output).items() if not key.startswith("manifest.json")} == shards[0]
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


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"body": "x"}\n', "rows: no column 'text'; choose --text-column from body"),
        ('{"text": "x", "id": "1"}\n{"text": \n', r"rows/train#0: reading failed \(.*\); run the same command again"),
    ],
)
def test_data_sets_that_cannot_be_read(tmp_path: Path, tokenizer: Path, rows: str, message: str) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text(rows)
    with pytest.raises(DataError, match=message):
        prep("wikipedia", "--dataset", tmp_path / "rows", "--tokenizer", tokenizer, "--output", tmp_path / "s")


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


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def shares_found(pairs: list[tuple[str, str]]) -> tuple[float, float]:
    """Of pairs of beginnings there and texts of ours: the median share found in order, and how many are above 85%."""
    shares = [share_found(there, ours) for there, ours in pairs]
    return statistics.median(shares), sum(share > 0.85 for share in shares) / len(shares)


def share_found(there: str, ours: str) -> float:
    """The share of words that stand in order, paragraph by paragraph, in a stretch of ours of twice its length."""
    paragraphs = [found for found in map(words, there.split("\n")) if found]
    text = words(ours)
    return sum(most_in_order(paragraph, text) for paragraph in paragraphs) / sum(map(len, paragraphs))


def most_in_order(paragraph: list[str], text: list[str]) -> int:
    """Longest common subsequence of a paragraph and any stretch of the text that is at most twice as long."""
    wanted, length = set(paragraph), 2 * len(paragraph)
    is_wanted = [word in wanted for word in text]
    before = [0, *accumulate(is_wanted)]
    # Most promising first: no stretch holds more than its words that are wanted at all.
    starts = [(before[min(i + length, len(text))] - before[i], i) for i, found in enumerate(is_wanted) if found]
    best = 0
    for bound, start in sorted(starts, reverse=True):
        if min(bound, len(paragraph)) <= best:
            break
        best = max(best, LCSseq.similarity(paragraph, text[start : start + length]))
    return best


def test_text_agrees_with_another_extraction(articles: list[Document], shared_data: Path) -> None:
    """The articles of the English dump against the extraction of 2015, whose version of them is months older.

    Words are ``\\w+`` in lower case, of the first 2,000 characters there without the word that the cut leaves. They are
    looked for paragraph by paragraph: those of a paragraph must stand in order, and in one stretch of ours of at most
    twice its length. So what editors moved elsewhere is no loss, which an extraction never does, while debris inside a
    paragraph is, and words far apart are no find. The second half shows that the measure tells good from bad: the raw
    markup, where every word is somewhere, does worse and the text of another article far worse. The longest common
    subsequence with the whole text tells less: it finds as much in the raw markup as in ours (RESULTS.md).
    """
    table = pq.read_table(shared_data / "wikipedia" / "articles-2015", columns=["title", "text"])
    others = dict(zip(*(column.to_pylist() for column in table), strict=True))
    both = [article for article in articles if article.source.startswith("enwiki-pages") and article.title in others]
    there = [others[article.title] for article in both]
    there = [text[:2000].rsplit(None, 1)[0] if len(text) > 2000 else text for text in there]
    ours = [article.text for article in both]
    assert len(both) == 106
    median, above = shares_found(list(zip(there, ours, strict=True)))
    assert median >= 0.96
    assert above >= 0.80

    markup = raw_markup(shared_data)
    assert shares_found([(text, markup[article.title]) for text, article in zip(there, both, strict=True)])[0] < 0.95
    assert shares_found(list(zip(there, ours[1:] + ours[:1], strict=True)))[0] < 0.25
    in_order = [
        LCSseq.similarity(words(text), words(our)) / len(words(text)) for text, our in zip(there, ours, strict=True)
    ]
    assert statistics.median(in_order) > 0.955
    assert sum(share > 0.85 for share in in_order) > 0.76 * len(in_order)


def raw_markup(shared_data: Path) -> dict[str, str]:
    (path,) = (shared_data / "wikipedia").glob("enwiki-pages*.xml.bz2")
    with bz2.open(path) as stream:
        pages = (element for _, element in etree.iterparse(stream, tag="{*}page"))
        return {page.findtext("{*}title"): page.findtext("{*}revision/{*}text") or "" for page in pages}


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
