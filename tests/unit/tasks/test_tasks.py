"""Reading examples of tasks: every format of file, and the message for every fault of a file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from bnb_ds.errors import ConfigError, DataError
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.examples import ReadingCounts, files_of, read_examples, reads_file
from bnb_ds.tasks.registry import TASKS, get_task

ROWS = [{"sentence": "a fine film", "label": 1}, {"sentence": 'it is "bad"', "label": 0}]


def read(task: str, split: str = "train", counts=None, **data):
    if "data_split" in data:
        data["split"] = data.pop("data_split")
    return list(read_examples(get_task(task), TaskDataSection(**data), split, counts))


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_all_declarations_are_whole():
    for task in TASKS.values():
        assert len(task.sources) in (1, 2)
        assert task.is_generation or task.labels or task.kind == "regression" or task.is_own
    with pytest.raises(ConfigError, match="task 'sst3': no such task; did you mean 'sst2'"):
        get_task("sst3")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz"])
def test_forms_of_files(tmp_path, suffix):
    path = tmp_path / f"train{suffix}"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif suffix.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        text = {
            ".jsonl": lines,
            ".json": json.dumps({"data": ROWS}),
            ".csv": 'sentence,label\na fine film,1\n"it is ""bad""",0\n',
            ".tsv": 'sentence\tlabel\na fine film\t1\nit is "bad"\t0\n',
        }[suffix]
        path.write_text(text)
    first, second = read("sst2", train=str(path))
    assert (first.sources, first.target) == (("a fine film",), 1)
    assert (second.sources, second.target) == (('it is "bad"',), 0)
    assert first.id != second.id


def test_a_hub_data_set_in_its_published_layout(tmp_path):
    (tmp_path / "sst2").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "sst2" / "train-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: sst2\n  data_files:\n  - split: train\n    path: sst2/train-*\n---\n"
    )
    assert [example.target for example in read("sst2", hub=str(tmp_path))] == [1, 0]
    with pytest.raises(DataError, match=r"split 'validation' cannot be loaded .*; go online once, or give local files"):
        read("sst2", "validation", hub=str(tmp_path))
    with pytest.raises(ConfigError, match="split 'dev': task sst2 has no such split"):
        read("sst2", "dev", hub=str(tmp_path))


def test_columns_by_other_names_by_number_and_nested(tmp_path):
    headless = write(tmp_path / "a.tsv", "gj04\t1\t\tThe sailors rode .\n")
    assert read("cola", train=headless, columns={"sentence": 3, "label": 1})[0].sources == ("The sailors rode .",)
    named = write(tmp_path / "b.jsonl", json.dumps({"source": ["One .", "Two ."], "target": ["Sum .", "Other ."]}))
    (example,) = read("summarization", train=named, columns={"document": "source", "summary": "target.0"})
    assert (example.sources, example.target) == (("One . Two .",), "Sum .")
    either = write(tmp_path / "c.jsonl", json.dumps({"content": "x", "label": "positive"}))
    assert read("sst2", train=either, columns={"sentence": ["sentence", "content"]})[0].target == 1
    with pytest.raises(ConfigError, match=r"data\.columns: task sst2 has no column 'text'"):
        read("sst2", train=either, columns={"text": "content"})


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (
            "sst2",
            {"text": "x", "label": 1},
            r"line 1: has no column 'sentence', only text, label; .*data\.col",
        ),
        ("sst2", {"sentence": "x", "label": 2}, r"line 1: the label 2 is not one of sst2's \(0 neg"),
        ("sst2", {"sentence": "x", "label": "good"}, r"line 1: the label 'good' is not one of sst2's"),
        (
            "sst2",
            {"sentence": " ", "label": 1},
            r"line 1: the source \(sentence\) is empty; remove the row",
        ),
        ("summarization", {"document": "x", "summary": ""}, r"line 1: the target \(summary\) is empty; remove the row"),
        ("stsb", {"sentence1": "a", "sentence2": "b", "label": "high"}, r"line 1: the score 'high' is not a number"),
    ],
)
def test_faults_of_a_row(tmp_path, task, row, message):
    path = write(tmp_path / "train.jsonl", json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        read(task, train=path)


def test_bad_rows_are_left_out_on_request(tmp_path):
    path = write(tmp_path / "train.tsv", "document\tsummary\na\t\nb\tc\nlonely\n")
    counts = ReadingCounts()
    assert [e.target for e in read("summarization", counts=counts, train=path, skip_bad_rows=True)] == ["c"]
    assert counts.skipped == 2
    with pytest.raises(DataError, match="line 2: the target"):
        read("summarization", train=path)
    short = write(tmp_path / "short.tsv", "document\tsummary\nlonely\n")
    with pytest.raises(DataError, match=r"line 2 has 1 fields instead of 2; correct it, or set data\.skip_bad_rows"):
        read("summarization", train=short)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "{", "line 1 is not valid JSON"),
        ("a.jsonl", "[1]", "line 1 is not a JSON object"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", '{"rows": []}', "not a list of JSON objects"),
        ("a.docx", "", "the suffix is not of a known format"),
        ("a.parquet", "no", "cannot be read as parquet"),
        ("a.jsonl.gz", "no", "cannot be read"),
        ("a.tsv", "sentence\tlabel\na\rb\t1\n", r"a\.tsv: line 2 cannot be read \(.*\); correct it"),
    ],
)
def test_faults_of_a_file(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read("sst2", train=write(tmp_path / name, content))
    with pytest.raises(DataError, match=r"absent\.jsonl: cannot be read"):
        read("sst2", train=str(tmp_path / "absent.jsonl"))


def damaged_gzip(path) -> str:
    """Compressed data that raise zlib.error."""
    data = bytearray(gzip.compress(json.dumps(ROWS).encode() * 99))
    data[10:40] = b"\xff" * 30
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("form", [".jsonl", ".json", ".csv"])
def test_damaged_compression(tmp_path, form):
    path = damaged_gzip(tmp_path / f"a{form}.gz")
    message = rf"a\{form}\.gz: cannot be read \(Error -3 while decompressing data: .*\); restore the file"
    with pytest.raises(DataError, match=message):
        read("sst2", train=path)


def test_parallel_files_that_cannot_be_read(tmp_path):
    source = write(tmp_path / "a.en", "one\n" * 999)
    (tmp_path / "a.de").write_bytes(b"\xff\n")
    cut = tmp_path / "cut.de.gz"
    cut.write_bytes(gzip.compress(b"eins\n" * 999)[:-12])
    for target, reason in (
        (tmp_path / "a.de", "'utf-8' codec can't decode byte 0xff"),
        (damaged_gzip(tmp_path / "b.de.gz"), "Error -3 while decompressing data"),
        (cut, "Compressed file ended before the end-of-stream marker"),
    ):
        with pytest.raises(DataError, match=rf"a\.en or {target}: cannot be read \({reason}.*\); restore the file"):
            read("translation", train={"source": source, "target": str(target)})


def test_parallel_files(tmp_path):
    en, de = write(tmp_path / "a.en", "one\ntwo\n"), write(tmp_path / "a.de", "eins\nzwei\n")
    pairs = read("wmt14_en_de", train={"source": en, "target": de})
    assert [(e.sources, e.target) for e in pairs] == [(("one",), "eins"), (("two",), "zwei")]
    short = write(tmp_path / "b.de", "eins\n")
    with pytest.raises(DataError, match=r"b\.de: has only 1 lines, fewer than .*a\.en"):
        read("translation", train={"source": en, "target": short})
    with pytest.raises(ConfigError, match="task mrpc: has 2 source columns, but parallel files hold one"):
        read("mrpc", train={"source": en, "target": de})


def test_splits_without_a_file_come_from_the_hub_that_is_named(tmp_path):
    """As for distilled targets, which replace the training set alone."""
    row = {"id": "1", "document": "source", "summary": "target"}
    hub = tmp_path / "hub"
    hub.mkdir()
    for split in ("train", "validation", "test"):
        write(hub / f"{split}.jsonl", json.dumps({**row, "summary": f"of the hub: {split}"}) + "\n")
    own = write(tmp_path / "distilled.jsonl", json.dumps(row) + "\n")
    for split, target in (("train", "target"), ("validation", "of the hub: validation"), ("test", "of the hub: test")):
        assert [example.target for example in read("xsum", split, train=own, hub=str(hub))] == [target]
        data = TaskDataSection(train=own, hub=str(hub))
        assert (reads_file(data, split), files_of(data, split)) == (split == "train", [Path(own)] * (split == "train"))
    with pytest.raises(
        ConfigError, match=r"data\.test: no file is named for this split; name one, or set data\.split or"
    ):
        read("xsum", "test", train=own)


SQUAD = {
    "data": [
        {
            "title": title,
            "paragraphs": [
                {
                    "context": "Some passage.",
                    "qas": [{"id": title, "question": "What?", "answers": [{"text": "Some", "answer_start": 0}]}],
                }
            ],
        }
        for title in ("Beyonc%C3%A9", "Warsaw")
    ]
}


def test_questions_of_listed_documents(tmp_path):
    """Du et al. split by document. SQuAD's titles have percent escapes where the lists have letters."""
    squad = write(tmp_path / "train-v1.1.json", json.dumps(SQUAD))
    listed = write(tmp_path / "doclist-test.txt", "Beyonc\u00e9\n")
    (example,) = read("squad_qg", "test", test=squad, documents={"test": listed})
    assert (example.sources, example.target) == (("Some", "Some passage."), "What?")
    assert len(read("squad_qg", train=squad)) == 2
    with pytest.raises(ConfigError, match="no list is given for the split 'train'"):
        read("squad_qg", train=squad, documents={"test": listed})
    with pytest.raises(ConfigError, match="the rows of task sst2 have no documents"):
        read("sst2", train=squad, documents={"train": listed})
    with pytest.raises(DataError, match=r"absent: cannot be read \(.*\); name a list of documents"):
        read("squad_qg", train=squad, documents={"train": str(tmp_path / "absent")})
    both = write(tmp_path / "doclist-train.txt", "Warsaw\nBeyonc%C3%A9\n")
    with pytest.raises(
        DataError, match=r"test\.txt: lists 'Beyonc\u00e9' for test, and .*train\.txt lists it for train; a"
    ):
        read("squad_qg", "test", test=squad, documents={"train": both, "test": listed})
    message = (
        r"data\.documents: the test split of squad_qg consists of listed documents of the training set; name the file"
    )
    with pytest.raises(ConfigError, match=message):
        read("squad_qg", "test")
    with pytest.raises(DataError, match="not in the format of SQuAD"):
        read("squad_qg", train=write(tmp_path / "x.json", '{"data": [{}]}'))


def test_a_split_by_hash_is_whole_and_the_same_whatever_the_order(tmp_path):
    rows = [json.dumps({"document": f"question {i}", "summary": f"short {i}"}) + "\n" for i in range(300)]
    parts_of = {"validation": 0.2, "test": 0.1, "seed": 3}
    forward = write(tmp_path / "a.jsonl", "".join(rows))
    backward = write(tmp_path / "b.jsonl", "".join(reversed(rows)))
    parts = {
        split: {e.id for e in read("icliniq", split, train=forward, data_split=parts_of)}
        for split in ("train", "validation", "test")
    }
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 300
    assert 30 < len(parts["validation"]) < 90
    assert {e.id for e in read("icliniq", "test", train=backward, data_split=parts_of)} == parts["test"]
    with pytest.raises(ValueError, match="leave no rows for training"):
        TaskDataSection(split={"validation": 0.5, "test": 0.5})
    with pytest.raises(ConfigError, match=r"data\.validation: no file is named for this split"):
        read("icliniq", "validation", train=forward)
    with pytest.raises(ConfigError, match="task icliniq has no data set on the hub"):
        read("icliniq", "train")


def test_limits(tmp_path):
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    assert len(read("sst2", train=path, max_train_samples=1)) == 1


def test_a_split_by_hash_beside_a_file_for_the_same_split(tmp_path):
    """Nothing would read the rows that the hash sets aside."""
    for name in ("validation", "test"):
        message = f"{name} names a file, and split.{name} 0.5 sets training rows aside .*; remove one of them"
        with pytest.raises(ValueError, match=message):
            TaskDataSection(**{"train": "a.jsonl", name: "b.jsonl", "split": {name: 0.5}})
    assert TaskDataSection(train="a.jsonl", validation="b.jsonl", split={"test": 0.5}).split.test == 0.5


def test_every_row_read_is_kept_or_counted(tmp_path):
    rows = [
        json.dumps({"document": f"question {i}", "summary": f"short {i}" * (i % 10 > 0)}) + "\n" for i in range(300)
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(rows))
    counts = ReadingCounts()
    kept = read("icliniq", "train", counts, train=path, data_split={"test": 0.5}, skip_bad_rows=True)
    assert counts.read == 300 == len(kept) + counts.left_out.total()
    assert counts.left_out["empty target"] == 30
    assert 50 < counts.left_out["set aside for test by data.split"] < 220
    assert counts.notes.blank_lines == 299


def test_rows_of_unlisted_documents_are_counted(tmp_path):
    squad = write(tmp_path / "train-v1.1.json", json.dumps(SQUAD))
    listed = write(tmp_path / "doclist.txt", "Warsaw\n")
    counts = ReadingCounts()
    assert len(read("squad_qg", "train", counts, train=squad, documents={"train": listed})) == 1
    assert (counts.read, dict(counts.left_out)) == (2, {"of documents that are not listed": 1})
    assert counts.notes.lines() == []
    # A byte order mark is no part of the first title, and a title that matches nothing is reported as it is written.
    listed = write(tmp_path / "marked.txt", "\ufeffWarsaw\nWarsow\nNew York\n A%20b \nD\n")
    counts = ReadingCounts()
    assert len(read("squad_qg", "train", counts, train=squad, documents={"train": listed})) == 1
    assert counts.notes.lines() == ["4 listed documents are not in the data (Warsow, New York, A%20b, ...)"]
    counts = ReadingCounts()
    read("squad_qg", "train", counts, train=squad, documents={"train": listed}, max_train_samples=1)
    assert counts.notes.lines() == [], "rows behind a limit are not read, so nothing is known of their documents"
    nameless = write(tmp_path / "b.jsonl", json.dumps({"context": "c", "question": "q", "answers": {"text": ["a"]}}))
    with pytest.raises(DataError, match=r"line 1: names no document \(title\); correct it, or set data\.skip_bad_rows"):
        read("squad_qg", train=nameless, documents={"train": listed})
