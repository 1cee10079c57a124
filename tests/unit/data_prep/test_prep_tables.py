"""Readers of .csv and .tsv: rows as spreadsheets and `csv` write them, and every fault as one line."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnb_ds.cli import main
from bnb_ds.errors import DataError
from bnb_ds.shards.reader import TokenShards
from data_prep.sources.documents import BadRecord, Document, content_id
from data_prep.sources.text import TextFormat, find_files, read_documents, read_records
from data_prep.sources.units import SourceFile
from tests.unit.data_prep.test_prep_text import expect, read


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfid,title,text\r\n7,x,"one, ""two""\nthree"\r\n\r\n,y,four\r\n')
    assert read(path) == [Document("7", 'one, "two"\nthree', "a.csv"), Document(content_id("four"), "four", "a.csv")]
    assert read(path, TextFormat("title", "text"))[0] == Document('one, "two"\nthree', "x", "a.csv")


def test_a_quotation_mark_in_tsv_is_text(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tid\n"an open mark\t1\nplain, with comma\t2\n')
    assert read(path) == [Document("1", '"an open mark', "a.tsv"), Document("2", "plain, with comma", "a.tsv")]


def test_compressed_and_found_in_directories(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text\nzipped\n"))
    (tmp_path / "b.tsv").write_text("text\nplain\n")
    assert [document.text for document in read_documents(find_files([tmp_path]))] == ["zipped", "plain"]


def test_faults(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("body,id\nx,1\n")
    expect(path, "a.csv: no column 'text'; choose --text-column from body, id")
    path.write_text("text,id\nx,1\ny\n")
    expect(path, "a.csv: line 3: has 1 fields instead of 2; correct it")
    path.write_text("text,text\nx,1\n")
    expect(path, "a.csv: line 1 names the column 'text' twice; give each column a name of its own")
    path.write_bytes(b"text\nfine\nna\xefve\n")
    expect(path, "a.csv: line 3: not valid UTF-8 at byte 3 of the line; convert the file")
    path.write_text('text,id\n"x,1\ny,2\n')
    with pytest.raises(DataError) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "quotation mark" in str(raised.value)


def test_a_row_with_other_fields_is_one_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,id\nx,1\ny\nz,3\n")
    first, bad, last = read_records(SourceFile(path, "a.csv"), TextFormat())
    assert (first.text, last.text) == ("x", "z")
    assert isinstance(bad, BadRecord)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1), min_size=1))
def test_what_csv_writes_is_read_back(tmp_path_factory, values: list[str]) -> None:
    path = tmp_path_factory.mktemp("tables") / "a.csv"
    target = io.StringIO(newline="")
    writer = csv.writer(target, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["text"])
    writer.writerows([value] for value in values)
    path.write_bytes(target.getvalue().encode())
    assert [document.text for document in read(path)] == values


def test_the_commands_read_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "reviews.csv"
    rows = "".join(f'{i},"the film number {i}, and more words of it"\n' for i in range(40))
    corpus.write_text(f"number,review\n{rows}")
    columns = ["--text-column", "review", "--id-column", "number"]
    tokenizer, shards = str(tmp_path / "tokenizer"), str(tmp_path / "shards")
    vocab = ["prep", "vocab", "--input", str(corpus), "--output", tokenizer, "--vocab-size", "200", *columns]
    assert main(vocab) == 0
    text = ["prep", "text", "--input", str(corpus), "--tokenizer", tokenizer, "--output", shards, *columns]
    assert main([*text, "--holdout", "0.2"]) == 0
    assert len(TokenShards(shards, "train")) + len(TokenShards(shards, "heldout")) == 40
