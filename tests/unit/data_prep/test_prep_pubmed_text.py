"""PubMed: ids, titles, labels of sections, and inline markup."""

from __future__ import annotations

import json
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest

from bnb_ds.data.tokenization import save_tokenizer
from bnb_ds.errors import DataError
from bnb_ds.shards.reader import TokenShards
from data_prep.sources.documents import Document
from data_prep.sources.pubmed import find_files, read_jsonl
from tests.prep_helpers import prep
from tests.unit.data_prep.test_prep_pubmed import article, read, write


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"pmid": 1.0}', "the pmid is of type float, not a string or an integer"),
        ('{"pmid": true}', "the pmid is of type bool, not a string or an integer"),
        ('{"pmcid": [1]}', "the pmcid is of type list, not a string or an integer"),
        ('{"pmid": "1.0"}', "the pmid is '1.0', which was a number or a truth value"),
        ('{"id": "True"}', "the id is 'True', which was a number or a truth value"),
        ('{"id": "1", "title": 5}', "title, abstract, label or text is of another type than a string"),
        ('{"pmid": NaN}', "no pmid, pmcid or id"),
        ('{"pmid": "nan", "id": " "}', "no pmid, pmcid or id"),
        ('{"pmid": null, "pmcid": "None", "id": 0}', "no pmid, pmcid or id"),
    ],
)
def test_ids_that_are_none(tmp_path: Path, row: str, reason: str) -> None:
    (tmp_path / "a.jsonl").write_text(row[:-1] + ', "abstract": "x"}\n{"pmid": NaN, "id": "7", "abstract": "x"}\n')
    bad, good = read(tmp_path / "a.jsonl")
    assert str(bad) == f"{tmp_path}/a.jsonl: line 1: not a PubMed record ({reason}); mend or remove the line"
    assert good.id == "7"


@pytest.mark.parametrize(
    "row", [{"pmid": "\ud800x", "abstract": "x"}, {"pmid": "\udfff"}, {"id": 1, "abstract": "\ud800"}]
)
def test_half_of_a_surrogate_pair(tmp_path: Path, small_tokenizer, row: dict) -> None:
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer")
    rows = [row, {"pmid": "2", "title": "t", "abstract": "abc"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["pubmed", "--input", tmp_path / "a.jsonl", "--tokenizer", tmp_path / "tokenizer", "--holdout", "0"]
    with pytest.raises(DataError, match=r"a.jsonl: line 1: holds half of a surrogate pair \(.*\); mend or remove it"):
        prep(*command, "--output", tmp_path / "s")
    prep(*command, "--output", tmp_path / "s", "--skip-bad")
    assert TokenShards(tmp_path / "s").manifest.totals.skipped == {"bad": 1}


@pytest.mark.parametrize(
    ("label", "text", "line"),
    [
        ("OBJECTIVE:", "To see.", "OBJECTIVE: To see."),
        ("Aims\n and  scope : ", "To see.", "Aims and scope: To see."),
        ("METHODS.", "We saw.", "METHODS: We saw."),
        ("RESULTS \u2014", "Seen.", "RESULTS: Seen."),
        ("WHAT IS KNOWN?", "Much.", "WHAT IS KNOWN? Much."),
        ("AIM", "AIM: To see.", "AIM: To see."),
        ("AIM", "Aim: To see.", "Aim: To see."),
        ("UNASSIGNED", "To see.", "To see."),
        ("RESULTS", "Results were seen.", "RESULTS: Results were seen."),
        (":", "To see.", "To see."),
        ("AIM", "", None),
        ("", "ABSTRACT.AIM:: To see a::b.", "ABSTRACT.AIM: To see a::b."),
    ],
)
def test_labels(tmp_path: Path, label: str, text: str, line: str | None) -> None:
    row = {"pmid": 1, "title": "T", "abstract": [{"label": label, "text": text}, {"text": "End."}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    section = f"<AbstractText Label={quoteattr(label)}>{text}</AbstractText><AbstractText>End.</AbstractText>"
    write(tmp_path / "a.xml", article(1, section, title="T"))
    expected = "\n".join(["T", *([line] if line else []), "End."])
    assert [read(tmp_path / name)[0].text for name in ("a.jsonl", "a.xml")] == [expected] * 2


M = 'xmlns:mml="http://www.w3.org/1998/Math/MathML"'


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<sec><title>Aim</title><p>To see.</p><p>We saw.</p></sec>", "Aim To see. We saw."),
        ("one<br/>two <ul><li>a</li><li>b</li></ul>", "one two a b"),
        ("<b>AIM:</b>To see <b>a:</b>1", "AIM: To see a:1"),
        ("<b>A</b><b>B</b>", "A B"),
        ("<mfrac>A<mn>2</mn>b</mfrac>, <msqrt>A<mn>2</mn>b</msqrt>", "A/2/b, \u221aA2b"),
        ("<b>AIM</b><i>To see</i> more", "AIM To see more"),
        ("<i>bla</i><sub>NDM</sub>, <i>bla</i><i><sub>KPC</sub></i>", "blaNDM, blaKPC"),
        ("Na<sup>+</sup><sub>2</sub>, <b>a</b>b, <u>c</u>, 10<sup>-3</sup>", "Na+2, ab, c, 10-3"),
        (f"of <mml:math {M}><mml:mfrac><mml:mn>1</mml:mn><mml:mn>2</mml:mn></mml:mfrac></mml:math>.", "of 1/2."),
        ("1<mfrac><mn>1</mn><mn>2</mn></mfrac>x", "1 1/2 x"),
        ("<mfrac><mrow><mi>a</mi><mo>+</mo><mn>1</mn></mrow><msqrt><mn>2</mn></msqrt></mfrac>", "(a+1)/(\u221a2)"),
        ("<mfrac><mfrac><mn>1</mn><mn>2</mn></mfrac><mn>3</mn></mfrac>", "(1/2)/3"),
        ("<mroot><mi>x</mi><mn>3</mn></mroot><mfenced><mi>a</mi><mi>b</mi></mfenced>", "3\u221ax(a, b)"),
        ("<mtable><mtr><mtd>1</mtd><mtd>2</mtd></mtr><mtr><mtd>3</mtd></mtr></mtable>", "1 2 3"),
        ("<semantics><mi>x</mi><annotation>\\x</annotation></semantics>", "x"),
        ("see<DispFormula>E = mc</DispFormula>there", "see E = mc there"),
    ],
)
def test_inline_markup(tmp_path: Path, markup: str, text: str) -> None:
    (document,) = read(write(tmp_path / "a.xml", article(1, f"<AbstractText>{markup}</AbstractText>", title="T")))
    assert document.text == f"T\n{text}"


@pytest.mark.parametrize("markup", ["<mfrac>&c;<mn>2</mn></mfrac>", "<msqrt><mi>&c;</mi></msqrt>", "<p>&c;</p>"])
def test_entities_in_formulas(tmp_path: Path, markup: str) -> None:
    path = write(
        tmp_path / "a.xml",
        article(1, f"<AbstractText>a {markup}</AbstractText>"),
        prolog='<!DOCTYPE x [<!ENTITY c "ha">]>',
    )
    (bad,) = read(path)
    assert "record 1: holds the entity reference &c;, and entities are not expanded" in str(bad)


def test_nested_sections_have_lines_of_their_own(tmp_path: Path) -> None:
    nested = (
        '<AbstractText Label="AIM">To see.<AbstractText Label="METHODS:">We <b>saw</b>.</AbstractText>'
        "<AbstractText/>At last.</AbstractText>"
    )
    (document,) = read(write(tmp_path / "a.xml", article(1, nested, title="T")))
    assert document.text == "T\nAIM: To see.\nMETHODS: We saw.\nAt last."


@pytest.mark.parametrize(
    "title", ["[Not Available].", "[Not available]", "Not Available", "[No title available].", "[In Process Citation]."]
)
def test_titles_that_are_none(tmp_path: Path, title: str) -> None:
    (document,) = read(write(tmp_path / "a.xml", article(1, "<AbstractText>Text.</AbstractText>", title=title)))
    assert (document.title, document.text) == ("", "Text.")


def test_no_label_of_the_real_abstracts_ends_twice(shared_data: Path) -> None:
    (file,) = find_files([shared_data / "pubmed" / "abstracts.jsonl.gz"])
    documents = [record for record in read_jsonl(file) if isinstance(record, Document)]
    assert len(documents) > 3000
    assert not [document.id for document in documents if "::" in document.text]
