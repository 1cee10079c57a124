"""Broken rows in every format: the line that tells of each, and what leaving them out keeps."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from bnb_ds.errors import DataError
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.examples import ReadingCounts, read_examples
from bnb_ds.tasks.registry import get_task

TABLES, JSONS = ("csv", "tsv"), ("json", "jsonl")
ALL = (*TABLES, *JSONS, "parquet")
GOOD = {"rte": {"sentence1": "a", "sentence2": "b", "label": "1"}, "summarization": {"document": "d", "summary": "s"}}
GOOD["stsb"] = {**GOOD["rte"], "label": "2.5"}
#: where the second row of each format is
PLACE = {"csv": "line 3", "tsv": "line 3", "json": "row 1", "jsonl": "line 2", "parquet": "row 1"}
HALF = "a \ud83d b"

#: task, what replaces values of its good row, formats, message, reason
BROKEN = [
    ("rte", {"sentence2": " "}, ALL, ": the source (sentence2) is empty; remove the row", "empty source"),
    ("rte", {"sentence2": None}, ALL, ": the source (sentence2) is empty; remove the row", "empty source"),
    ("rte", {"label": ""}, ALL, ": the label (label) is empty; remove the row", "no label"),
    ("rte", {"label": None}, ALL, ": the label (label) is empty; remove the row", "no label"),
    ("rte", {"label": "-"}, ALL, ": the label '-' is not one of rte's (0 entailment, 1 not_ent", "unknown label"),
    ("rte", {"label": "-1"}, ALL, ": the label '-1' is not one of rte's (", "unknown label"),
    ("rte", {"label": "0.5"}, ALL, ": the label '0.5' is not one of rte's (", "unknown label"),
    (
        "rte",
        {"label": "1.0"},
        ALL,
        ": the label '1.0' has a decimal point, unlike the first; wri",
        "label in another form",
    ),
    ("rte", {"label": float("nan")}, JSONS, ": the label (label) is empty; remove the row", "no label"),
    ("rte", {"label": True}, JSONS, ": the label True is not one of rte's (", "unknown label"),
    (
        "rte",
        {"sentence1": HALF},
        JSONS,
        ": the text of sentence1 holds \\ud83d, which is half a",
        "text with half a character",
    ),
    (
        "rte",
        {"sentence1": {"de": "x"}},
        JSONS,
        ": the source (sentence1) is a dict, not a text; giv",
        "source is no text",
    ),
    (
        "rte",
        {"sentence2": ...},
        JSONS,
        ": has no column 'sentence2', only sentence1, label; give",
        "no column 'sentence2'",
    ),
    ("rte", {"label": ...}, JSONS, ": has no column 'label', only sentence1, sentence2; give", "no column 'label'"),
    ("stsb", {"label": "nan"}, ALL, ": the score 'nan' is not a number; correct it", "score is no number"),
    ("stsb", {"label": "inf"}, ALL, ": the score 'inf' is not a number; correct it", "score is no number"),
    ("stsb", {"label": "1_0"}, ALL, ": the score '1_0' is not a number; correct it", "score is no number"),
    ("stsb", {"label": "-"}, ALL, ": the score '-' is not a number; correct it", "score is no number"),
    ("stsb", {"label": None}, ALL, ": the score is empty; remove the row", "no score"),
    ("stsb", {"label": float("nan")}, JSONS, ": the score nan is not a number; correct it", "score is no number"),
    ("summarization", {"summary": ""}, ALL, ": the target (summary) is empty; remove the row", "empty target"),
    ("summarization", {"summary": None}, ALL, ": the target (summary) is empty; remove the row", "empty target"),
    (
        "summarization",
        {"summary": HALF},
        JSONS,
        ": the text of summary holds \\ud83d, which",
        "text with half a character",
    ),
]
CASES = [
    pytest.param(task, change, form + zipped, message, reason, id=f"{task}-{change}-{form}{zipped}")
    for task, change, forms, message, reason in BROKEN
    for form in forms
    for zipped in (("", ".gz") if form != "parquet" else ("",))
]


def content(form: str, rows: list[dict]) -> bytes:
    """A file of these rows, which have the same columns unless the format is JSON."""
    if form == "parquet":
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        return sink.getvalue()
    if form == "json":
        return json.dumps(rows).encode()
    if form == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter="," if form == "csv" else "\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def write(folder, suffix: str, data: bytes | str) -> str:
    """Write a file, compressed if the suffix says so."""
    data = data.encode() if isinstance(data, str) else data
    path = folder / f"rows.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    return str(path)


def read(task: str, counts: ReadingCounts | None = None, **data):
    return list(read_examples(get_task(task), TaskDataSection(**data), "train", counts))


@pytest.mark.parametrize(("task", "change", "suffix", "message", "reason"), CASES)
def test_a_broken_row(tmp_path, task, change, suffix, message, reason):
    form = suffix.removesuffix(".gz")
    bad = {name: value for name, value in {**GOOD[task], **change}.items() if value is not ...}
    path = write(tmp_path, suffix, content(form, [GOOD[task], bad, GOOD[task]]))
    with pytest.raises(DataError, match=re.escape(f"{path}: {PLACE[form]}{message}")) as raised:
        read(task, train=path)
    assert str(raised.value).endswith(", or set data.skip_bad_rows")
    assert "\n" not in str(raised.value)
    counts = ReadingCounts()
    assert len(read(task, counts, train=path, skip_bad_rows=True)) == 2
    assert (counts.read, dict(counts.left_out)) == (3, {reason: 1})


#: suffix, content, line, whether the row can be left out
FILES = [
    ("csv", 'sentence,label\na,1\n"b,0\nc,1\n', "line 3: a quotation mark opens a field here, and none closes", False),
    ("csv", 'sentence,label\n"a",1\n"b,0\nc,1\n"d",0\n', "line 3: a quotation mark opens a field here, and", False),
    ("csv", 'sentence,label\n"a\n\n"b"",0\nc,1\n', "line 2: a quotation mark opens a field here, and none", False),
    ("csv", 'sentence,label\na,"1\nb,1\nc",0\nd,1\n', "line 2 has 3 fields instead of 2, and a quoted field in", False),
    ("csv", "sentence,label\na,1\nb\n", "line 3 has 1 fields instead of 2; correct it", True),
    ("tsv", "sentence\tlabel\na\t1\nb\n", "line 3 has 1 fields instead of 2; correct it", True),
    ("csv", "label,label\n1,1\n", "line 1 names the column 'label' twice; give each column a name of its own", False),
    ("tsv", "sentence\tsentence\na\tb\n", "line 1 names the column 'sentence' twice; give each", False),
    ("jsonl", '{"sentence": "a", "label": 1}\n{"sentence": "b", "la\n', "line 2 is not valid JSON (", True),
    ("jsonl", '{"sentence": "a", "label": 1}\n' + "[" * 99999 + "\n", "line 2 is not valid JSON (", True),
    ("jsonl", '{"sentence": "a", "label": 1}\n[1]\n', "line 2 is not a JSON object; write one object per line", True),
    ("json", '[{"sentence": "a", "label": 1}, 3]', "row 1 is not a JSON object; write a list of objects", True),
    ("json", "[" * 99999, "not valid JSON (", False),
    ("tsv", b"sentence\tlabel\na\t1\nb\xff\t1\n", "cannot be read ('utf-8' codec can't decode byte 0xff", False),
    ("csv", b"sentence,label\na,1\nb\xff,1\n", ", line 3 of rows.csv", False),
    ("jsonl", b'{"sentence": "a", "label": 1}\n{"sentence": "\xff"}\n', ", line 2 of rows.jsonl", False),
]


@pytest.mark.parametrize(("suffix", "data", "message", "can_be_left_out"), FILES)
@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_a_broken_file(tmp_path, suffix, data, message, can_be_left_out, zipped):
    path = write(tmp_path, suffix + zipped, data)
    with pytest.raises(DataError, match=re.escape(message)) as raised:
        read("sst2", train=path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)
    if can_be_left_out:
        counts = ReadingCounts()
        assert [example.sources for example in read("sst2", counts, train=path, skip_bad_rows=True)] == [("a",)]
        assert counts.skipped == 1
    else:
        with pytest.raises(DataError, match=re.escape(message)):
            read("sst2", train=path, skip_bad_rows=True)


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("a\nb\n", "c\n", "has only 1 lines, fewer than"),
        ("a\n\nb\n", "c\nd\ne\n", "line 2: the source (source) is empty; remove the row"),
        ("a\nb\n", "c\n \n", "line 2: the target (target) is empty; remove the row"),
        ("a\nb\n", b"c\n\xff\n", ", line 2 of de"),
    ],
)
def test_broken_parallel_files(tmp_path, zipped, source, target, message):
    paths = []
    for name, data in (("en", source), ("de", target)):
        data = data.encode() if isinstance(data, str) else data
        paths.append(tmp_path / f"{name}{zipped}")
        paths[-1].write_bytes(gzip.compress(data) if zipped else data)
    with pytest.raises(DataError, match=re.escape(message)):
        read("translation", train={"source": str(paths[0]), "target": str(paths[1])})


def test_a_hundred_rows_are_not_two(tmp_path):
    rows = "".join(f"row {i},{i % 2}\n" for i in range(100))
    path = write(tmp_path, "csv", f'sentence,label\nfirst,1\n"broken,0\n{rows}')
    with pytest.raises(DataError, match=r"line 3: a quotation mark opens a field here, and none closes it as far as l"):
        read("sst2", train=path, skip_bad_rows=True)


def test_two_missing_marks_are_noted_where_the_format_allows_what_they_make(tmp_path):
    """Both marks together quote whole rows, which csv allows."""
    path = write(tmp_path, "csv", 'sentence,label\n"a,0\nb,1\nc",1\n"d\nd",0\n')
    counts = ReadingCounts()
    assert len(read("sst2", counts, train=path)) == 2
    _, note = counts.notes.lines()
    assert (
        "1 quoted fields over several lines that each look like a row of their own (the first opens in line 2)" in note
    )


def test_tsv_keeps_quotation_marks_and_notes_unbalanced_ones(tmp_path):
    path = write(tmp_path, "tsv.gz", 'sentence\tlabel\n"a" b\t1\n"c\t0\n\nd\t1\n"e\t1\n')
    counts = ReadingCounts()
    assert [e.sources[0] for e in read("sst2", counts, train=path)] == ['"a" b', '"c', "d", '"e']
    assert counts.notes.lines() == [
        "1 blank lines passed over",
        "2 fields with an unbalanced quotation mark, kept as text (the first in line 3)",
    ]


@pytest.mark.parametrize("form", ALL)
def test_labels_with_a_decimal_point_in_every_row(tmp_path, form):
    """A column of whole numbers with gaps becomes one of floats in many programs."""
    rows = [{**GOOD["rte"], "label": label} for label in ("1.0", "0.0", "" if form in TABLES else None)]
    if form == "parquet":
        rows = [{**row, "label": None if row["label"] is None else float(row["label"])} for row in rows]
    path = write(tmp_path, form, content(form, rows))
    assert [example.target for example in read("rte", train=path, skip_bad_rows=True)] == [1, 0]


def test_snlis_rows_without_agreement_are_left_out(tmp_path):
    rows = [{"premise": "a", "hypothesis": "b", "label": label} for label in ("neutral", "-", "entailment", "-")]
    counts = ReadingCounts()
    path = write(tmp_path, "tsv", content("tsv", rows))
    assert [example.target for example in read("mnli", counts, train=path, skip_bad_rows=True)] == [1, 0]
    assert dict(counts.left_out) == {"unknown label": 2}


@pytest.mark.parametrize("rows", ['"a, b,0\nc,1\nd",1\n', '"a\n\nb",0\n', '"a\r\nb",0\r\n'])
def test_fields_over_several_lines_are_counted(tmp_path, rows):
    """Two missing marks may look like any of them, so that each launch says how many there are."""
    path = write(tmp_path, "csv", f'sentence,label\n{rows}plain,1\n"c\nd\ne",0\n')
    counts = ReadingCounts()
    assert len(read("sst2", counts, train=path)) == 3
    said = [line for line in counts.notes.lines() if "over several lines" in line]
    longest = 5 if rows.count("\n") < 3 else 2
    assert said == [f"2 rows have quoted fields over several lines (the longest begins in line {longest}: 3 lines)"]


@pytest.mark.parametrize("form", ["jsonl", "json", "jsonl.gz"])
def test_a_json_row_with_two_values_of_one_name(tmp_path, form):
    """Which of them is meant? A reader of JSON takes the last, without a word."""
    row = '{"sentence": "a", "label": 0, "label": 1}'
    data = f"[{row}]" if form == "json" else f'{row}\n{{"sentence": "b", "label": 1}}\n'
    path = write(tmp_path, form, data)
    place = "" if form == "json" else "line 1 is "
    with pytest.raises(DataError, match=rf"{place}not valid JSON \(two values of 'label' in one object\)"):
        read("sst2", train=path)
    if form != "json":
        assert [example.sources[0] for example in read("sst2", train=path, skip_bad_rows=True)] == ["b"]


def test_a_parquet_file_with_two_columns_of_one_name(tmp_path):
    columns = [pyarrow.array(["a"]), pyarrow.array([0]), pyarrow.array([1])]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_arrays(columns, names=["sentence", "label", "label"]), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match=r"a.parquet: names the column 'label' twice; give each column a name of its"):
        read("sst2", train=str(tmp_path / "a.parquet"))
