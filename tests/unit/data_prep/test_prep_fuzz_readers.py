"""Random input for every reader: a record, a bad record or one line of error for each, and nothing lost silently."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnb_ds.errors import DataError
from data_prep.sources import pubmed, text, wikipedia
from data_prep.sources.documents import BadRecord, Document, Omitted, Record, is_encodable
from data_prep.sources.text import TextFormat, read_records
from data_prep.sources.units import find_files
from tests.fuzzing import fuzzed

pytestmark = pytest.mark.slow

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("\ud800")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)
KEYS = ("id", "text", "pmid", "pmcid", "title", "abstract")
ROWS = st.one_of(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5), JSON)
ABSTRACTS = st.fixed_dictionaries(
    {"abstract": st.lists(st.fixed_dictionaries({"label": JSON, "text": JSON}), max_size=3), "pmid": st.integers(1)}
)
JSON_LINES = st.one_of(
    st.builds(lambda row: json.dumps(row).encode("ascii"), st.one_of(ROWS, ABSTRACTS)),
    st.binary(max_size=20).filter(lambda line: not {*b"\r\n"} & {*line}),
)
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def only(path: Path, kinds: tuple[str, ...]):
    (file,) = find_files([path], kinds)
    return file


def one_line(records: Iterator[Record]) -> list[Record] | None:
    """The records, or None after an error, which has to be one line."""
    found = []
    message = ""
    try:
        for record in records:
            found.append(record)
            assert not isinstance(record, BadRecord) or "\n" not in str(record)
            assert not isinstance(record, Document) or is_encodable(record.id, record.text)
    except DataError as error:
        message = str(error)
    assert "\n" not in message
    return None if message else found


@fuzzed(150)
@given(st.lists(JSON_LINES, max_size=5))
def test_fuzz_jsonl(folder: Path, lines: list[bytes]) -> None:
    """Every line makes one record, in both readers of .jsonl."""
    path = folder / "a.jsonl"
    path.write_bytes(b"\n".join([b'{"id": "1", "text": "x", "abstract": "x"}', *lines]) + b"\n")
    for read in (lambda: read_records(only(path, text.EXTENSIONS), TextFormat()), lambda: pubmed_rows(path)):
        found = one_line(read())
        assert found is not None
        blank = sum(is_blank(line) for line in lines)
        assert len(found) == 1 + len(lines) - blank


def is_blank(line: bytes) -> bool:
    try:
        return not line.decode("utf-8").strip()
    except UnicodeDecodeError:
        return False


def pubmed_rows(path: Path) -> Iterator[Record]:
    return pubmed.read_jsonl(only(path, pubmed.EXTENSIONS))


@fuzzed(150)
@given(st.lists(WORDS, max_size=8), st.sampled_from(["\n", "\r\n", "\r"]), st.binary(max_size=4))
def test_fuzz_txt(folder: Path, lines: list[str], end: str, tail: bytes) -> None:
    path = folder / "a.txt"
    path.write_bytes("".join(line + end for line in ["first", *lines]).encode("utf-8"))
    for separator in text.TXT_DOCUMENTS:
        found = one_line(read_records(only(path, text.EXTENSIONS), TextFormat(txt_documents=separator)))
        assert found is not None
        words = " ".join(record.text for record in found).split()
        assert words == " ".join(["first", *lines]).split()
    path.write_bytes(path.read_bytes() + tail)
    one_line(read_records(only(path, text.EXTENSIONS), TextFormat()))


TYPES = [
    *(pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.bool_(), pa.string(), pa.large_string(), pa.binary()),
    *(pa.date32(), pa.date64(), pa.time64("ns"), pa.duration("s"), pa.timestamp("ns"), pa.timestamp("us", "UTC")),
    *(pa.timestamp("s", "Nowhere/Else"), pa.decimal128(5, 2), pa.list_(pa.int8()), pa.struct([("a", pa.int8())])),
]


@st.composite
def columns(draw: st.DrawFn, count: int) -> pa.Array:
    """A column of random bits of some type, with and without missing values."""
    kind = draw(st.sampled_from(TYPES))
    if pa.types.is_nested(kind) or pa.types.is_decimal(kind):
        value = {pa.list_(pa.int8()): [1], pa.decimal128(5, 2): 1}.get(kind, {"a": 1})
        return pa.array([draw(st.sampled_from([None, value])) for _ in range(count)], kind)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        values = pa.array([draw(st.one_of(st.none(), st.binary(max_size=5))) for _ in range(count)], pa.binary())
        return values if pa.types.is_binary(kind) else values.cast(pa.large_binary()).cast(kind, safe=False)
    if pa.types.is_boolean(kind):
        return pa.array([draw(st.sampled_from([None, True, False])) for _ in range(count)], kind)
    width = kind.bit_width // 8
    data = draw(st.binary(min_size=width * count, max_size=width * count))
    return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(data)])


@fuzzed(150)
@given(st.data(), st.integers(0, 4))
def test_fuzz_parquet_and_arrow(folder: Path, data: st.DataObject, count: int) -> None:
    """Every row makes one record, whatever its id and text are."""
    try:
        table = pa.table({"text": data.draw(columns(count)), "id": data.draw(columns(count))})
        pq.write_table(table, folder / "a.parquet")
    except (pa.ArrowException, UnicodeDecodeError):
        return  # pyarrow itself refuses to make or write it
    with pa.OSFile(str(folder / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        found = one_line(read_records(only(folder / name, wikipedia.KINDS), TextFormat()))
        assert found is not None
        assert len(found) == count


INLINE = st.recursive(
    WORDS.map(escape),
    lambda inner: st.builds(
        lambda tag, one, two: f"<{tag}>{one}</{tag}>{two}",
        st.sampled_from(["b", "i", "u", "sub", "sup", "p", "AbstractText", "mfrac", "msqrt", "x"]),
        inner,
        inner,
    ),
    max_leaves=8,
)
PUBMED = (
    "<PubmedArticleSet>"
    "<PubmedArticle><MedlineCitation><PMID>1</PMID><Article><Journal><Title>J</Title></Journal><ArticleTitle>{}"
    "</ArticleTitle><Abstract><AbstractText>start {} end</AbstractText></Abstract></Article></MedlineCitation>"
    "</PubmedArticle><PubmedArticle><MedlineCitation><PMID>2</PMID><Article><ArticleTitle>T</ArticleTitle>"
    "<Abstract><AbstractText>Last.</AbstractText></Abstract></Article></MedlineCitation></PubmedArticle>"
    "</PubmedArticleSet>"
)
FLIPS = st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=3)), min_size=1, max_size=3)


def flipped(data: bytes, flips: list[tuple[int, bytes]]) -> bytes:
    """The data with bytes put in the place of others; empty ones cut it off."""
    for place, new in flips:
        place %= len(data) or 1
        data = data[:place] + new + data[place + len(new) :] if new else data[:place]
    return data


@fuzzed(150)
@given(INLINE, INLINE, FLIPS)
def test_fuzz_pubmed_xml(folder: Path, title: str, abstract: str, flips: list[tuple[int, bytes]]) -> None:
    path = folder / "p.xml"
    path.write_text(PUBMED.format(title, abstract), encoding="utf-8")
    first, second = one_line(pubmed.read_xml(only(path, pubmed.EXTENSIONS)))
    assert second.text == "T\nLast."
    visible = re.sub(r"<[^<>]*>", "", f"start{abstract}end").replace("&lt;", "<").replace("&gt;", ">")
    letters = "".join(visible.replace("&amp;", "&").split())
    kept = "".join(first.text.split())
    assert [c for c in letters if c.isalpha()] == [c for c in kept if c.isalpha()][-sum(map(str.isalpha, letters)) :]
    path.write_bytes(flipped(path.read_bytes(), flips))
    one_line(pubmed.read_xml(only(path, pubmed.EXTENSIONS)))


@fuzzed(150)
@given(st.lists(WORDS, max_size=4), FLIPS)
def test_fuzz_dump(folder: Path, words: list[str], flips: list[tuple[int, bytes]]) -> None:
    path = folder / "d.xml"
    pages = "".join(
        f"<page><title>{escape(word)}</title><ns>0</ns><id>{i + 1}</id><revision><text>{escape(word)} "
        "[[link|end]]</text></revision></page>"
        for i, word in enumerate(words)
    )
    path.write_text(f'<mediawiki xml:lang="en"><siteinfo/>{pages}</mediawiki>', encoding="utf-8")
    found = one_line(wikipedia.read_dump(only(path, wikipedia.KINDS)))
    assert found is not None
    assert [record.id if isinstance(record, Document) else record for record in found] == [
        str(i + 1) if isinstance(found[i], Document) else Omitted("redirect") for i in range(len(words))
    ]
    path.write_bytes(flipped(path.read_bytes(), flips))
    one_line(wikipedia.read_dump(only(path, wikipedia.KINDS)))
