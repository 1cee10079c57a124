"""Readers of .parquet and .arrow."""

from __future__ import annotations

import os
import re
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bnb_ds.errors import DataError
from data_prep.sources.documents import BadRecord, Document, content_id
from data_prep.sources.text import TextFormat, find_files, read_documents, read_records
from data_prep.sources.units import SourceFile
from tests.unit.data_prep.test_prep_text import DEFAULT, expect, read, texts


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


@pytest.mark.parametrize(
    ("ids", "name"),
    [
        (pa.array([0.5, 1.0]), "float"),
        (pa.array([b"x", b"y"]), "bytes"),
        (pa.array([{"a": 1}, {"a": 2}]), "dict"),
        (pa.array([Decimal("1.5"), Decimal(2)]), "Decimal"),
        (pa.array([1, 2], pa.timestamp("s")), "datetime"),
        (pa.array([1 << 60, 2], pa.timestamp("ms")), r"timestamp\[ms\]"),
        (pa.array([-(1 << 62), 2], pa.timestamp("us", "UTC")), r"timestamp\[us, tz=UTC\]"),
        (pa.array([1, 2], pa.timestamp("ns")), r"(Timestamp|datetime|timestamp\[ns\])"),
        (pa.array([(1 << 31) - 1, 2], pa.date32()), r"date32\[day\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_ids_that_are_neither_strings_nor_integers(tmp_path: Path, ids: pa.Array, name: str, suffix: str) -> None:
    table, path = pa.table({"id": ids, "text": ["x", "y"]}), tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    found = list(read_records(SourceFile(path, path.name), DEFAULT))
    assert isinstance(found[0], BadRecord)
    message = f"row 1: the id is of type {name}; choose an --id-column of strings or integers, or --ignore-ids"
    assert re.search(message, str(found[0]))
    ignoring = TextFormat(ignore_ids=True)
    assert [row.id for row in read_records(SourceFile(path, path.name), ignoring)] == [content_id("x"), content_id("y")]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_columns_of_one_name(tmp_path: Path, suffix: str) -> None:
    def written(names: list[str]) -> Path:
        table, path = pa.table([pa.array(["x"])] * len(names), names=names), tmp_path / f"{''.join(names)}.{suffix}"
        if suffix == "parquet":
            pq.write_table(table, path)
        else:
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table)
        return path

    for names, twice in ((["text", "text"], "text"), (["id", "text", "id"], "id")):
        path = written(names)
        with pytest.raises(DataError, match=f"{path.name}: 2 columns are named '{twice}'; rename all but one"):
            list(read_records(SourceFile(path, path.name), DEFAULT))
    others = written(["text", "x", "x"])
    assert [row.text for row in read_records(SourceFile(others, "a"), DEFAULT)] == ["x"]
    ids = written(["id", "text", "id"])
    assert [row.text for row in read_records(SourceFile(ids, "a"), TextFormat(ignore_ids=True))] == ["x"]


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
