"""Readers of .txt, .jsonl and .parquet."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

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
        ("page.html", "page.html: not a .txt, .jsonl, .csv, .tsv, .parquet file; convert it or choose another --input"),
        ("empty", "empty: no .txt, .jsonl, .csv, .tsv, .parquet file in this directory; name one that has some"),
    ],
)
def test_inputs_that_are_refused(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path / "page.html", "<p>")
    write(tmp_path / "empty" / "readme.md", "")
    with pytest.raises(DataError, match=message):
        find_files([tmp_path / name])


def test_links_to_directories_are_followed(tmp_path: Path) -> None:
    """Each directory once, under its own name if it has one there; a circle ends."""
    write(tmp_path / "elsewhere" / "b.txt", "b")
    write(tmp_path / "corpus" / "sub" / "a.txt", "a")
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "again").symlink_to(tmp_path / "corpus" / "sub")
    (tmp_path / "corpus" / "sub" / "circle").symlink_to(tmp_path / "corpus")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    assert [file.name for file in find_files([tmp_path / "corpus"])] == ["linked/b.txt", "sub/a.txt"]
    (tmp_path / "all").symlink_to(tmp_path / "corpus")
    assert [file.name for file in find_files([tmp_path / "all"])] == ["linked/b.txt", "sub/a.txt"]


def test_link_to_nothing_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "corpus" / "a.txt", "a")
    (tmp_path / "corpus" / "b.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(DataError, match=r"b.txt: cannot read: No such file or directory; check the file"):
        list(read_documents(find_files([tmp_path / "corpus"])))


def test_directory_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "corpus" / "a.txt", "a")
    write(tmp_path / "corpus" / "closed" / "b.txt", "b")
    scandir = os.scandir

    def refuse(path):  # root, who may run this, is let in everywhere
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"corpus/closed: cannot read: Permission denied; check the file and its perm"):
        find_files([tmp_path / "corpus"])


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


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 5, 1 << 20])
@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("one\rtwo\r\rthree", ["one", "two", "three"]),
        ("one\r\r\ntwo\nthree\r", ["one", "two", "three"]),
        ("one", ["one"]),
        ("one\r", ["one"]),
        ("one\n\r\n\rtwo\n", ["one", "\rtwo"]),  # lines end in LF here
    ],
)
def test_lines_that_end_in_cr_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, lines: list[str], block_bytes: int
) -> None:
    monkeypatch.setattr("data_prep.sources.opening._LINES_BYTES", max(block_bytes, content.find("\r") + 1))
    assert texts(write(tmp_path / "a.txt", content), TextFormat(txt_documents="line")) == lines


def test_paragraphs_and_rows_whose_lines_end_in_cr_alone(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.txt", "\ufeffone\rtwo\r\rthree\r")) == ["one\ntwo", "three"]
    assert texts(write(tmp_path / "a.jsonl", '{"text": "a"}\r{"text": "b\\r"}\r')) == ["a", "b\r"]


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
        ('{"\\n": "x"}', "no column 'text'; choose --text-column from '\\\\n'"),
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
