"""Readers of .txt, .jsonl and .parquet."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bnb_ds.errors import DataError
from data_prep.sources.documents import Document, content_id, is_held_out
from data_prep.sources.text import TextFormat, find_files, read_documents
from data_prep.sources.units import SourceFile

DEFAULT = TextFormat()


def read(path: Path, text_format: TextFormat = DEFAULT) -> list[Document]:
    return list(read_documents(find_files([path]), text_format))


def texts(path: Path, text_format: TextFormat = DEFAULT) -> list[str]:
    return [document.text for document in read(path, text_format)]


def expect(path: Path, message: str, text_format: TextFormat = DEFAULT) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(path, text_format)
    assert "\n" not in str(caught.value)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


# Finding files


def test_directories_are_searched_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.jsonl", "a/y.parquet", "a/.hidden.txt", ".git/c.txt", "a/readme.md"):
        write(tmp_path / "corpus" / name, "")
    extra = write(tmp_path / "extra.txt", "")
    files = find_files([extra, tmp_path / "corpus"])
    assert [file.name for file in files] == ["extra.txt", "a/y.parquet", "a/z.jsonl", "b.txt"]


def test_directory_named_like_a_file(tmp_path: Path) -> None:
    # Spark writes directories named x.parquet.
    write(tmp_path / "corpus.parquet" / "part-0.jsonl", "")
    assert [file.name for file in find_files([tmp_path])] == ["corpus.parquet/part-0.jsonl"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.txt", "none.txt: no such file or directory; check --input"),
        ("page.html", "page.html: not a .txt, .jsonl, .parquet file; convert it or choose another --input"),
        ("empty", "empty: no .txt, .jsonl, .parquet file in this directory; name one that has some"),
    ],
)
def test_inputs_that_are_refused(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path / "page.html", "<p>")
    write(tmp_path / "empty" / "readme.md", "")
    with pytest.raises(DataError, match=message):
        find_files([tmp_path / name])


def test_input_named_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus" / "a.txt", "x")
    with pytest.raises(DataError, match=r"a.txt: named twice by --input; name it once"):
        find_files([path, tmp_path / "corpus"])


def test_manifest_entry(tmp_path: Path) -> None:
    (file,) = find_files([write(tmp_path / "a.txt", "hello")])
    assert file.manifest_entry() == {"name": "a.txt", "bytes": 5, "sha256": hashlib.sha256(b"hello").hexdigest()}


def test_file_that_disappears(tmp_path: Path) -> None:
    gone = SourceFile(tmp_path / "gone.txt", "gone.txt")
    with pytest.raises(DataError, match=r"gone.txt: cannot read: No such file or directory; check the file"):
        gone.manifest_entry()
    with pytest.raises(DataError, match=r"gone.txt: cannot read: No such file or directory; check the file"):
        list(read_documents([gone]))


# .txt


TWO_PARAGRAPHS = "one\ntwo\n\n \n\nthree  \r\n\tfour"


@pytest.mark.parametrize(
    ("separator", "expected"),
    [
        ("blank-line", ["one\ntwo", "three  \n\tfour"]),
        ("line", ["one", "two", "three  ", "\tfour"]),
        ("file", ["one\ntwo\n\n \n\nthree  \n\tfour"]),
    ],
)
def test_txt_documents(tmp_path: Path, separator: str, expected: list[str]) -> None:
    path = write(tmp_path / "a.txt", TWO_PARAGRAPHS)
    assert texts(path, TextFormat(txt_documents=separator)) == expected


def test_txt_ids_follow_the_text_alone(tmp_path: Path) -> None:
    before = read(write(tmp_path / "a.txt", "one\n\ntwo"))
    after = read(write(tmp_path / "b.txt", "zero\n\none\n\ntwo\n"))
    assert [document.id for document in after[1:]] == [document.id for document in before]
    assert before[0] == Document(content_id("one"), "one", "a.txt")


def test_txt_byte_order_mark_and_odd_characters(tmp_path: Path) -> None:
    # Only the newline ends a line; form feed, NEL and line separator do not.
    assert texts(write(tmp_path / "a.txt", "\ufeffone\x0c\x85\u2028two\x00")) == ["one\x0c\x85\u2028two\x00"]


def test_txt_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n \n")
    assert texts(path) == []
    assert texts(path, TextFormat(txt_documents="line")) == []


@pytest.mark.parametrize(("name", "first_line"), [("a.txt", b"fine"), ("a.jsonl", b'{"text": "fine"}')])
def test_invalid_utf8(tmp_path: Path, name: str, first_line: bytes) -> None:
    path = write(tmp_path / name, first_line + b"\ncaf\xe9\n")
    expect(path, rf"{name}: line 2: not valid UTF-8 at byte 4 of the line; convert the file")


# .jsonl


def test_jsonl(tmp_path: Path) -> None:
    rows = [{"id": 7, "text": "a\nb", "extra": []}, {"id": "x", "text": ""}, {"text": None}, {"id": None, "text": "é"}]
    path = write(tmp_path / "a.jsonl", "\ufeff" + "\n\n".join(json.dumps(row) for row in rows))
    assert read(path) == [
        Document("7", "a\nb", "a.jsonl"),
        Document("x", "", "a.jsonl"),
        Document(content_id(""), "", "a.jsonl"),
        Document(content_id("é"), "é", "a.jsonl"),
    ]


def test_jsonl_other_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": 1, "pmid": 2, "abstract": "a", "text": "b"}')
    (document,) = read(path, TextFormat(text_column="abstract", id_column="pmid"))
    assert (document.id, document.text) == ("2", "a")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ', r"not valid JSON \(.*\); mend or remove the line"),
        ("[" * 100_000, r"not valid JSON \(.*\); mend or remove the line"),
        ('["text"]', "a JSON list, not an object; write one object per line"),
        ('{"body": "x", "n": 1}', "no column 'text'; choose --text-column from body, n"),
        ("{}", "no column 'text'; choose --text-column from none"),
        ('{"text": 3}', "the text is of type int; choose a --text-column of strings"),
        ('{"text": "x", "id": [1]}', "the id is of type list; choose an --id-column of strings or integers"),
        ('{"text": "x", "id": true}', "the id is of type bool; choose an --id-column"),
        ('{"text": "\\ud800"}', r"holds half of a surrogate pair \(.*\); mend or remove it"),
        ('{"text": "x", "id": "\\udfff"}', r"holds half of a surrogate pair \(.*\); mend or remove it"),
    ],
)
def test_jsonl_bad_line(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "fine"}\n\n' + line)
    expect(path, f"a.jsonl: line 3: {message}")


def test_jsonl_without_the_id_column_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "x"}')
    expect(path, "a.jsonl: line 1: no column 'pmid'; choose --id-column from text", TextFormat(id_column="pmid"))


# .parquet


def write_parquet(path: Path, row_group_size: int = 3, **columns: list) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def test_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", id=[3, 1, None, 4], title=list("abcd"), text=["w", None, "y", "z"])
    assert read(path) == [
        Document("3", "w", "a.parquet"),
        Document("1", "", "a.parquet"),
        Document(content_id("y"), "y", "a.parquet"),
        Document("4", "z", "a.parquet"),
    ]


def test_parquet_keeps_order_over_batches_and_row_groups(tmp_path: Path) -> None:
    expected = [f"document {i}" for i in range(1000)]
    path = write_parquet(tmp_path / "a.parquet", row_group_size=300, text=expected)
    documents = read(path)
    assert [document.text for document in documents] == expected
    assert documents[0].id == content_id("document 0")


def test_parquet_one_column_for_text_and_id(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", name=["x"])
    assert read(path, TextFormat("name", "name")) == [Document("x", "x", "a.parquet")]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()])
def test_parquet_string_types(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array(["a", "b"]).cast(kind)}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == ["a", "b"]


def test_parquet_without_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == []


def test_parquet_without_the_column(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", id=[1], body=["x"])
    expect(path, "a.parquet: no column 'text'; choose --text-column from id, body")


def test_parquet_with_text_of_another_type(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=[b"x"])
    expect(path, "a.parquet: row 1: the text is of type bytes; choose a --text-column of strings")


def test_parquet_with_an_id_of_another_type(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["x", "y"], id=[None, 0.5])
    expect(path, "a.parquet: row 2: the id is of type float; choose an --id-column of strings or integers")


def test_parquet_with_invalid_utf8(tmp_path: Path) -> None:
    broken = pa.array([b"ok", b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    expect(tmp_path / "a.parquet", "a.parquet: row 2: not valid UTF-8; write the file again")


def test_parquet_truncated(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["x" * 100] * 50)
    os.truncate(path, path.stat().st_size - 20)
    expect(path, r"a.parquet: not a readable parquet file \(.*\); restore or convert it")


def test_parquet_damaged_inside(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", row_group_size=1000, text=[os.urandom(40).hex() for _ in range(500)])
    data = bytearray(path.read_bytes())
    data[4:4004] = b"\xff" * 4000
    path.write_bytes(data)
    expect(path, r"a.parquet: (cannot read: |not a readable parquet file)")


def test_wikipedia_rows(shared_data: Path) -> None:
    files = find_files([shared_data / "wikipedia" / "articles-2015"])
    assert [file.name for file in files] == [f"train-0000{i}-of-00004.parquet" for i in range(4)]
    documents = read_documents(files)
    table = pq.read_table(files[0].path, columns=["id", "text"]).slice(0, 300)
    for row_id, row_text, document in zip(*(column.to_pylist() for column in table), documents, strict=False):
        assert document == Document(str(row_id), row_text, files[0].name)


# Holding out


def test_holdout_is_a_function_of_the_id() -> None:
    ids = [str(i) for i in range(20_000)]
    held_out = [document_id for document_id in ids if is_held_out(document_id, 0.05)]
    # Binomial with 20,000 draws: the standard deviation is 31.
    assert abs(len(held_out) - 1000) < 150
    assert set(held_out) < {document_id for document_id in ids if is_held_out(document_id, 0.1)}
    assert not any(is_held_out(document_id, 0.0) for document_id in ids)
    assert all(is_held_out(document_id, 1.0) for document_id in ids)


def test_holdout_never_changes() -> None:
    # A change of the rule would move documents of existing corpora between the splits.
    digest = hashlib.sha256(b"12").digest()
    threshold = int.from_bytes(digest[:8], "big") / 2**64
    assert is_held_out("12", threshold + 1e-9)
    assert not is_held_out("12", threshold - 1e-9)
    assert [i for i in range(400) if is_held_out(str(i), 0.01)] == [178, 245, 286, 342, 374]
