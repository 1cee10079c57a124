"""Data sets are read in the layouts in which they were published, from small files of the same layout."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from bnb_ds.errors import ConfigError, DataError
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.examples import read_examples
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.rows import read_file


def read(task: str, split: str = "train", **data):
    return list(read_examples(get_task(task), TaskDataSection(**data), split))


def write(path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


XSUM = [
    {"document": "Clean-up continues.\nTrains are late.", "summary": "Work goes on.", "id": "35232142"},
    {"document": "A fire alarm went off.", "summary": "Two coaches burnt.", "id": "40143035"},
]


@pytest.mark.parametrize("form", ["hub", "jsonl", "parquet", "columns"])
def test_xsum(tmp_path, form):
    """On the hub: id, document, summary. The reference implementation's files: one object a line."""
    names = {"document": "text", "summary": "highlight"} if form == "columns" else {}
    rows = [{names.get(name, name): value for name, value in row.items()} for row in XSUM]
    data: dict[str, object] = {"columns": names}
    if form in ("hub", "parquet"):
        (tmp_path / "data").mkdir()
        path = tmp_path / "data" / "train-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        data |= {"hub": str(tmp_path)} if form == "hub" else {"train": str(path)}
    else:
        data["train"] = write(tmp_path / "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    examples = read("xsum", **data)
    assert [(e.id, *e.sources, e.target) for e in examples] == [(r["id"], r["document"], r["summary"]) for r in XSUM]


@pytest.mark.parametrize(("source", "target"), [("restbody", "first_sentence"), ("document", "summary")])
def test_xsums_original_files_of_lines(tmp_path, source, target):
    """What the scripts of its repository write: an article a line, and its summary in another file."""
    files = {
        "source": write(tmp_path / f"train.{source}", "trains are late .\na fire alarm went off .\n"),
        "target": write(tmp_path / f"train.{target}", "work goes on .\ntwo coaches burnt .\n"),
    }
    first, _ = read("xsum", train=files)
    assert (first.sources, first.target) == (("trains are late .",), "work goes on .")


def test_xsums_lists_of_ids_are_no_rows(tmp_path):
    lists = write(
        tmp_path / "XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json", json.dumps({"train": ["35232142"], "test": []})
    )
    with pytest.raises(DataError, match=r"SPLIT-90-5-5.json: not a list of JSON objects, nor one under 'data'; give"):
        read("xsum", train=lists)


PAIRS = [("A & B.", "A und B."), ('He said: "No".', "Er sagte: „Nein“.")]


def sgm(language: str, side: int) -> str:
    escaped = [pair[side].replace("&", "&amp;").replace('"', "&quot;") for pair in PAIRS]
    segments = "\n".join(f'<seg id="{number}">{text}</seg>' for number, text in enumerate(escaped, 1))
    kind = "srcset" if side == 0 else "refset"
    return (
        f'<{kind} setid="newstest2014" srclang="any" trglang="{language}">\n<doc sysid="ref" docid="1">\n<p>\n'
        f"{segments}\n</p>\n</doc>\n</{kind}>\n"
    )


@pytest.mark.parametrize("form", ["lines", "sgm", "hub", "jsonl", "tsv"])
def test_wmt(tmp_path, form):
    data: dict[str, object] = {}
    rows = [{"translation": {"de": de, "en": en}} for en, de in PAIRS]
    if form == "lines":
        texts = ["".join(f"{pair[side]}\n" for pair in PAIRS) for side in (0, 1)]
        data["train"] = {"source": write(tmp_path / "t.en", texts[0]), "target": write(tmp_path / "t.de", texts[1])}
    elif form == "sgm":
        source = write(tmp_path / "newstest2014-ende-src.en.sgm", sgm("en", 0))
        data["train"] = {"source": source, "target": write(tmp_path / "newstest2014-ende-ref.de.sgm", sgm("de", 1))}
    elif form == "hub":
        (tmp_path / "de-en").mkdir()
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, tmp_path / "de-en" / "train-00000-of-00001.parquet")
        header = "---\nconfigs:\n- config_name: de-en\n  data_files:\n  - split: train\n    path: de-en/train-*\n---\n"
        write(tmp_path / "README.md", header)
        data["hub"] = str(tmp_path)
    elif form == "jsonl":
        data["train"] = write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    else:
        data["train"] = write(tmp_path / "t.tsv", "".join(f"{en}\t{de}\n" for en, de in PAIRS))
        data["columns"] = {"translation.en": 0, "translation.de": 1}
    examples = read("wmt14_en_de", **data)
    assert [(*example.sources, example.target) for example in examples] == PAIRS
    back = read("wmt14_de_en", **{**data, "train": data.get("train")}) if form in ("hub", "jsonl", "tsv") else []
    assert not back or (back[0].sources, back[0].target) == ((PAIRS[0][1],), PAIRS[0][0])


def test_what_is_wrong_with_an_sgm_file(tmp_path):
    whole = write(tmp_path / "a.sgm", sgm("en", 0))
    with pytest.raises(DataError, match=r"a.sgm: an sgm file holds one language; give both as \{source: FILE, target"):
        read("translation", train=whole)
    broken = write(tmp_path / "b.sgm", '<doc>\n<seg id="1">One\nmore</seg>\n')
    with pytest.raises(DataError, match=r"b.sgm: line 2 begins a <seg> that does not end there; write each segment on"):
        read("translation", train={"source": broken, "target": whole})
    short = write(tmp_path / "c.sgm", '<seg id="1">One</seg>\n')
    with pytest.raises(DataError, match=r"c.sgm: has only 1 lines, fewer than .*a.sgm"):
        read("translation", train={"source": short, "target": whole})


def test_wmts_rows_a_line_in_a_json_file(tmp_path):
    """The form of transformers' run_translation.py, whose files end with .json."""
    path = write(
        tmp_path / "t.json", '{"translation": {"en": "a", "de": "b"}}\n{"translation": {"en": "c", "de": "d"}}\n'
    )
    with pytest.raises(DataError, match=r"t.json: not valid JSON .*or name it .jsonl if it has one object per line"):
        read("wmt14_en_de", train=path)


DIALOGUES = """id=1
https://www.icliniq.com/qa/knee

Description
Q. What makes my knee swell?

Dialogue
Patient:
Hello doctor,
My knee swells at night.

Doctor:
Hello,
Rest it for a week.


id=2
https://www.icliniq.com/qa/cough

Description
Cough for two weeks

Dialogue
Patient: I cough. Doctor: said nothing.

Doctor: See a doctor.

Patient: Thank you.
"""


@pytest.mark.parametrize("task", ["icliniq", "healthcaremagic"])
def test_medical_dialogues_as_text(tmp_path, task):
    path = write(tmp_path / f"{task}_dialogue.txt", DIALOGUES)
    first, second = read(task, train=path)
    assert first.target == "What makes my knee swell?"
    assert first.sources == ("Patient: Hello doctor, My knee swells at night. Doctor: Hello, Rest it for a week.",)
    assert second.target == "Cough for two weeks"
    questions = read(task, train=path, columns={"document": "patient"})
    assert [example.sources[0] for example in questions] == [
        "Hello doctor, My knee swells at night.",
        "I cough. Doctor: said nothing. Thank you.",
    ]
    (_, row), _ = read_file(tmp_path / f"{task}_dialogue.txt")
    assert (row["id"], row["doctor"]) == ("1", "Hello, Rest it for a week.")


def test_a_dialogue_without_a_description(tmp_path):
    path = write(tmp_path / "d.txt", DIALOGUES.replace("Description\nCough", "Cough"))
    with pytest.raises(DataError, match=r"d.txt: record of line 17: has no line 'Description'; correct it, or set"):
        read("icliniq", train=path)
    assert len(read("icliniq", train=path, skip_bad_rows=True)) == 1
    table = write(tmp_path / "table.txt", "document\tsummary\na\tb\n")
    assert read("icliniq", train=table)[0].target == "b"


def test_medical_lists_of_chatdoctor_and_biobart(tmp_path):
    """ChatDoctor: a list with instruction, input, output. BioBART: ``{"data": [{"id", "tgt", "src"}]}``."""
    asked = {"instruction": "Answer the patient.", "input": "My knee swells.", "output": "Rest it."}
    chat = write(tmp_path / "iCliniq.json", json.dumps([asked]))
    (example,) = read("icliniq", train=chat, columns={"document": "input", "summary": "output"})
    assert (example.sources, example.target) == (("My knee swells.",), "Rest it.")
    with pytest.raises(DataError, match=r"row 0: has no column 'document', only instruction, input, output; give its"):
        read("icliniq", train=chat)
    prepared = write(tmp_path / "train.json", json.dumps({"data": [{"id": 3, "tgt": "Knee", "src": "It swells."}]}))
    (example,) = read("healthcaremagic", train=prepared, columns={"document": "src", "summary": "tgt"})
    assert (example.sources, example.target) == (("It swells.",), "Knee")


@pytest.mark.slow
def test_squads_validation_is_what_du_et_al_listed(shared_data):
    """Of the public file, with the public list: all 10,570 questions of 48 articles, and none of the other lists."""
    squad = str(shared_data / "squad" / "dev-v1.1.json.gz")
    lists = shared_data / "squad" / "du2017"
    listed = {split: str(lists / f"doclist-{name}.txt") for split, name in (("validation", "dev"), ("test", "test"))}
    assert len(read("squad_qg", "validation", validation=squad, documents=listed)) == 10_570
    assert read("squad_qg", "test", test=squad, documents=listed) == []
    parts = [set((lists / f"doclist-{name}.txt").read_text().split("\n")) - {""} for name in ("train", "dev", "test")]
    assert [len(part) for part in parts] == [398, 48, 44]
    assert len(set.union(*parts)) == 398 + 48 + 44
    with pytest.raises(ConfigError, match="no list is given for the split 'train'"):
        read("squad_qg", train=squad, documents=listed)
