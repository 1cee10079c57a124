"""PubMed XML and .jsonl: what becomes a document, which version wins, what is refused."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest

from bnb_ds.data.tokenization import load_tokenizer, save_tokenizer
from bnb_ds.errors import DataError
from bnb_ds.shards.manifest import SPLITS
from bnb_ds.shards.reader import TokenShards
from data_prep.jobs.index import IndexBuilder, decide
from data_prep.sources import pubmed_skim
from data_prep.sources.documents import BadRecord, Deletion, Document, Omitted, is_held_out
from data_prep.sources.pubmed import PubmedSource, find_files, read_jsonl, read_xml
from tests.prep_helpers import content, prep


def article(pmid: int, text: str | None, title: str = "A title.", version: int = 1) -> str:
    abstract = f"<Abstract>{text}</Abstract>" if text else ""
    return (
        f'<PubmedArticle><MedlineCitation><PMID Version="{version}">{pmid}</PMID><Article>'
        f"<ArticleTitle>{title}</ArticleTitle>{abstract}</Article></MedlineCitation>"
        "<PubmedData><ArticleIdList><ArticleId>9</ArticleId></ArticleIdList></PubmedData></PubmedArticle>\n"
    )


def plain(pmid: int, text: str, version: int = 1) -> str:
    return article(pmid, f"<AbstractText>{text}</AbstractText>", version=version)


def write(path: Path, *records: str, prolog: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = f'<?xml version="1.0"?>{prolog}<PubmedArticleSet>{"".join(records)}</PubmedArticleSet>'.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path: Path) -> list:
    (file,) = find_files([path])
    return list(read_xml(file) if ".xml" in path.suffixes else read_jsonl(file))


def test_title_and_labelled_sections(tmp_path: Path) -> None:
    sections = (
        '<AbstractText Label="AIMS">Of <i>in\n vitro</i> CO<sub>2</sub>.</AbstractText>'
        '<AbstractText Label="UNLABELLED">Plain &lt; &#233;.</AbstractText><AbstractText Label="X"/>'
        "<CopyrightInformation>(c)</CopyrightInformation>"
    )
    (document,) = read(write(tmp_path / "a.xml.gz", article(7, sections, title="On <b>this</b>.", version=2)))
    text = "On this.\nAIMS: Of in vitro CO2.\nPlain < é."
    assert document == Document("7", text, "a.xml.gz", "On this.", 2)


def test_book_article_and_bare_citation(tmp_path: Path) -> None:
    book = (
        '<PubmedBookArticle><BookDocument><PMID Version="1">1</PMID><Book><BookTitle>A book</BookTitle></Book>'
        "<Abstract><AbstractText>On it.</AbstractText></Abstract></BookDocument></PubmedBookArticle>"
    )
    bare = plain(2, "Old form.").split("<PubmedData>")[0].removeprefix("<PubmedArticle>")
    found = read(write(tmp_path / "a.xml", book, bare))
    assert [(document.id, document.text) for document in found] == [
        ("1", "A book\nOn it."),
        ("2", "A title.\nOld form."),
    ]


def test_records_that_make_no_document(tmp_path: Path) -> None:
    deletion = "<DeleteCitation><PMID Version='1'>5</PMID><PMID Version='1'>6</PMID></DeleteCitation>"
    found = read(write(tmp_path / "a.xml", article(4, None), deletion))
    assert found == [Omitted("no abstract", "4", 1), Deletion("5"), Deletion("6")]


def test_jsonl(tmp_path: Path) -> None:
    rows = [
        {"pmcid": "PMC1", "title": "T", "abstract": [{"label": "A", "text": "x\n y"}, {"label": "", "text": "z"}]},
        {"pmid": 2, "abstract": "One string."},
        {"pmid": 3, "title": "T", "abstract": []},
        {"title": "no id", "abstract": "x"},
        {"pmid": 4, "abstract": "\ud800"},
        ["list"],
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{")
    found = read(tmp_path / "a.jsonl")
    assert found[:3] == [
        Document("PMC1", "T\nA: x y\nz", "a.jsonl", "T", 0),
        Document("2", "One string.", "a.jsonl", "", 0),
        Omitted("no abstract", "3", 0),
    ]
    assert [type(record) for record in found[3:]] == [BadRecord] * 4
    assert str(found[3]).endswith(
        "a.jsonl: line 4: not a PubMed record (no pmid, pmcid or id); mend or remove the line"
    )


def texts(output: Path) -> dict[str, set[str]]:
    tokenizer = load_tokenizer(output / "tokenizer")
    found = {}
    for split in SPLITS:
        shards = TokenShards(output, split, verify_hashes=True)
        found[split] = {tokenizer.decode(shards.document(i)) for i in range(len(shards))}
    return found


@pytest.fixture
def updates(tmp_path: Path) -> Path:
    """A baseline of two files and two update files."""
    base, later = tmp_path / "in" / "pubmed1", tmp_path / "in" / "pubmed2"
    write(base / "n0001.xml.gz", plain(1, "one old"), plain(2, "two"), plain(3, "three"), plain(4, "four high", 2))
    write(base / "n0002.xml.gz", plain(5, "five"), plain(6, "two"), plain(7, "seven"), plain(8, "eight"))
    delete = "<DeleteCitation><PMID>3</PMID><PMID>7</PMID></DeleteCitation>"
    write(later / "n0003.xml.gz", plain(1, "one new"), plain(4, "four low", 1), delete)
    write(later / "n0004.xml.gz", plain(7, "seven again"), article(8, None))
    return tmp_path / "in"


def test_latest_version_wins_and_deletions_hold(updates: Path, small_tokenizer, tmp_path: Path, capsys) -> None:
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer")
    common = ["pubmed", "--input", updates, "--tokenizer", tmp_path / "tokenizer", "--holdout", "0"]
    prep(*common, "--output", tmp_path / "a")
    found = texts(tmp_path / "a")["train"]
    kept = ["two", "four high", "five", "one new", "seven again"]
    ids = [small_tokenizer(f"A title.\n{text}", add_special_tokens=False)["input_ids"] for text in kept]
    assert found == {small_tokenizer.decode(row) for row in ids}
    totals = TokenShards(tmp_path / "a").manifest.totals
    assert totals.skipped == {"deleted": 2, "duplicate": 1, "no abstract": 1, "superseded": 3}
    assert (
        "2 deleted skipped, 1 duplicate skipped, 1 no abstract skipped, 3 superseded skipped" in capsys.readouterr().out
    )

    pieces = [*common, "--part-bytes", "1"]
    prep(*pieces, "--output", tmp_path / "b", "--workers", 2)
    shards = TokenShards(tmp_path / "b")
    assert len(shards.manifest.shards) == 4
    assert {small_tokenizer.decode(shards.document(i)) for i in range(len(shards))} == found

    # Tasks meet twice: nothing can be built before every part is indexed.
    for task in (0, 1):
        prep(*pieces, "--output", tmp_path / "c", "--num-tasks", 2, "--task-index", task)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].endswith("2 of 4 parts are not indexed yet; run every task again when all are")
    prep(*pieces, "--output", tmp_path / "c", "--num-tasks", 2, "--task-index", 0)
    prep("merge", tmp_path / "c")
    assert content(tmp_path / "c") == content(tmp_path / "b")

    prep(*common, "--output", tmp_path / "d", "--no-drop-duplicates")
    assert len(TokenShards(tmp_path / "d")) == 6


def test_decisions_equal_an_obvious_loop() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        records, builder = [], IndexBuilder()
        for _ in range(random.integers(0, 60)):
            pmid, version, text = map(str, random.integers(0, [8, 3, 6]))
            kind = random.integers(0, 10)
            record = Document(pmid, text, "", "", int(version))
            if kind == 0:
                record = Deletion(pmid)
            elif kind == 1:
                record = Omitted("no abstract", pmid, int(version))
            elif kind == 2:
                record = BadRecord("here", "bad")
            records.append(record)
            builder.add(record)
        table = np.load(io.BytesIO(builder.to_bytes()))
        drops = decide(table, latest_wins=True, duplicates=True)
        seen = set()
        for place, record in enumerate(records):
            if isinstance(record, (Deletion, BadRecord)):
                continue
            later = records[place + 1 :]
            same = [(r.version, i) for i, r in enumerate(records) if getattr(r, "version", None) is not None
                    and r.id == record.id and Deletion(r.id) not in records[i + 1 :]]  # fmt: skip
            if Deletion(record.id) in later:
                expected = 2
            elif max(same) != (record.version, place):
                expected = 1
            elif isinstance(record, Document) and record.text in seen:
                expected = 3
            else:
                expected = 0
                if isinstance(record, Document):
                    seen.add(record.text)
            assert drops[place] == expected, (place, records)


BOMB = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;">]>'


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.xml", b"no xml", r"a.xml: line 1: not well-formed XML \(.*\); fetch the file again"),
        ("a.xml", b"", r"a.xml: line 1: not well-formed XML \(.*\); fetch the file again"),
        ("a.xml", b"<html><p/></html>", r"a.xml: its root is <html>, not <PubmedArticleSet>; choose another command"),
        ("a.xml", b"<:x><PubmedArticle/></:x>", r"a.xml: its root is <:x>, not <PubmedArticleSet>; choose"),
        ("a.xml", b"<PubmedArticleSet><PubmedArticle>", r"a.xml: line 1: not well-formed XML"),
        ("a.xml", b"<PubmedArticleSet>\n\xe9</PubmedArticleSet>", r"a.xml: line 2: not well-formed XML"),
        ("a.xml", b"<PubmedArticleSet>\x00</PubmedArticleSet>", r"a.xml: line 1: not well-formed XML"),
        ("a.xml.gz", b"this is no gzip file at all", r"a.xml.gz: damaged or not what its suffix says"),
        ("a.xml", b"<PubmedArticleSet><PubmedArticle/></PubmedArticleSet>", "record 1: no PMID or no article in it"),
    ],
)
def test_bad_files(tmp_path: Path, small_tokenizer, name: str, data: bytes, message: str) -> None:
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        prep("pubmed", "--input", tmp_path / name, "--tokenizer", tmp_path / "tokenizer", "--output", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_truncated_gzip(tmp_path: Path) -> None:
    path = write(tmp_path / "a.xml.gz", *(plain(i, "text " * 50) for i in range(2000)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        DataError, match=r"a.xml.gz: truncated: the compressed data end too early; fetch the file again"
    ):
        read(path)


@pytest.mark.parametrize(
    "prolog",
    [
        '<!DOCTYPE x [<!ENTITY c SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">',
        BOMB,
    ],
    ids=["external entity", "external DTD", "billion laughs"],
)
def test_entities_are_not_expanded(tmp_path: Path, prolog: str) -> None:
    path = write(tmp_path / "a.xml", plain(1, "fine"), plain(2, "<i>x</i> &c;"), plain(3, "fine"), prolog=prolog)
    found = read(path)
    assert [type(record) for record in found] == [Document, BadRecord, Document]
    assert str(found[1]) == (
        f"{path}: record 2: holds the entity reference &c;, and entities are not expanded; remove it from the file"
    )


def test_skipped_bad_records_are_counted_and_listed(tmp_path: Path, small_tokenizer, capsys) -> None:
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer")
    write(tmp_path / "in" / "a.xml", plain(1, "fine"), plain(2, "&c;"), plain(3, "good"), prolog=BOMB)
    (tmp_path / "in" / "b.xml").write_text(f"<PubmedArticleSet>{plain(4, 'before the end')}<PubmedArticle>")
    command = ["pubmed", "--input", tmp_path / "in", "--tokenizer", tmp_path / "tokenizer", "--holdout", "0"]
    with pytest.raises(DataError, match=r"record 2: holds the entity.*\(or leave such records out with --skip-bad\)"):
        prep(*command, "--output", tmp_path / "s")
    prep(*command, "--output", tmp_path / "s", "--skip-bad")
    shards = TokenShards(tmp_path / "s")
    assert (len(shards), shards.manifest.totals.skipped) == (3, {"bad": 2})
    lines = [json.loads(line)["record"] for line in (tmp_path / "s" / "bad_records.jsonl").read_text().splitlines()]
    assert lines[0].startswith(f"{tmp_path}/in/a.xml: record 2: holds the entity reference &c;")
    assert lines[1].endswith("(the rest of the file is skipped)")
    assert "2 bad skipped" in capsys.readouterr().out


SKIMMED_FORMS = {
    "lists": plain(1, "text").replace("</Article>", "<AuthorList A='Y'>\n<Author/>\n</AuthorList><X/></Article>"),
    "journal": plain(2, "text").replace("<ArticleTitle>", "<Journal>\n<Title>x</Title></Journal>\n<ArticleTitle>"),
    "journal open": plain(3, "text").replace("<ArticleTitle>", "<Journal/><ArticleTitle>"),
    "no abstract": article(4, None).replace("</Article>", "<Language>e</Language></Article>"),
    "two abstracts": plain(5, "text</AbstractText></Abstract><L/><Abstract><AbstractText>more"),
    "empty abstract": article(6, None).replace("</Article>", "<Abstract/></Article>"),
    "attribute": plain(7, "text").replace("<Abstract>", "<Abstract x='1'>"),
    "empty title": plain(8, "text").replace("<ArticleTitle>A title.</ArticleTitle>", "<ArticleTitle/>"),
    "no title": plain(9, "text").replace("<ArticleTitle>A title.</ArticleTitle>", ""),
    "no article": "<PubmedArticle><MedlineCitation><PMID>10</PMID></MedlineCitation></PubmedArticle>",
    "comment": plain(11, "text").replace("</Article>", "<!-- </Article> --><L/></Article>"),
    "cdata": plain(12, "<![CDATA[</Abstract></Article> a!]]> text!"),
    "instruction": plain(13, "text").replace("</Article>", "<?x </Article>?></Article>"),
    "other abstract": plain(14, "text").replace(
        "</MedlineCitation>",
        "<OtherAbstract><AbstractText>no</AbstractText></OtherAbstract></MedlineCitation>\n",
    ),
    "between": plain(15, "text") + "<DeleteCitation>\n<PMID>3</PMID></DeleteCitation><PubmedBookArticle/>",
    "markup in text": plain(16, "a <i>b</i> &lt;/Abstract&gt; /> c").replace("A title.", "A <b>title</b>!"),
}


@pytest.mark.parametrize("block_bytes", [7, 1000, 1 << 20])
def test_skimming_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    """Records of every form, and blocks that end anywhere: what is read is what the parser alone reads."""
    path = write(tmp_path / "a.xml", *SKIMMED_FORMS.values(), plain(99, "the last"))
    monkeypatch.setattr(pubmed_skim, "_BLOCK_BYTES", block_bytes)
    skimmed = read(path)
    monkeypatch.setattr(pubmed_skim, "_essence", lambda record: record)
    assert skimmed == read(path)
    assert sum(isinstance(record, Document) for record in skimmed) == 14
    assert skimmed[-1].id == "99"


@pytest.mark.parametrize(
    "form",
    [form for form in SKIMMED_FORMS if "comment" not in form and "instruction" not in form],
)
def test_skimming_keeps_lines_and_finds_what_is_not_closed(tmp_path: Path, form: str) -> None:
    """A fault behind any form of record is reported on its own line, and an open element is a fault wherever it is."""
    open_list = plain(98, "text").replace("</Article>", "\n<ChemicalList><Chemical/>\n</Article>")
    path = write(tmp_path / "b.xml", "\n", SKIMMED_FORMS[form], open_list)
    line = path.read_text().count("\n", 0, path.read_text().index("<ChemicalList>")) + 2
    with pytest.raises(DataError, match=rf"b.xml: line {line}: not well-formed XML"):
        read(path)


def test_most_of_a_record_is_skimmed() -> None:
    record = SKIMMED_FORMS["lists"] + SKIMMED_FORMS["journal"] + SKIMMED_FORMS["no abstract"]
    skimmed = pubmed_skim.skim(record.encode()).decode()
    assert skimmed.count("\n") == record.count("\n")
    assert not [name for name in ("Author", "X/", "<Title", "Language", "ArticleId") if name in skimmed]


def test_skimming_real_files_changes_nothing(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = find_files([shared_data / "pubmed" / "xml"])
    skimmed = [record for file in files for record in read_xml(file)]
    monkeypatch.setattr(pubmed_skim, "_essence", lambda record: record)
    assert skimmed == [record for file in files for record in read_xml(file)]


@pytest.mark.slow
def test_real_exports(shared_data: Path, tmp_path: Path) -> None:
    """Every XML export and the abstracts: shards that decode to the tokenizer's own decoding of the source text."""
    tokenizer_path = shared_data / "tokenizers" / "bert-base-cased"
    inputs = shared_data / "pubmed"
    prep("pubmed", "--input", inputs, "--tokenizer", tokenizer_path, "--output", tmp_path / "s", "--workers", 2)
    tokenizer = load_tokenizer(tokenizer_path)
    source = PubmedSource(find_files([inputs]))
    records = [record for unit in source.units() for record in source.read(unit)]
    documents = [record for record in records if isinstance(record, Document)]
    splits = {split: TokenShards(tmp_path / "s", split, verify_hashes=True) for split in SPLITS}
    totals = splits["train"].manifest.totals
    assert totals.skipped["no abstract"] == sum(isinstance(record, Omitted) for record in records)
    assert sum(totals.documents.values()) + sum(totals.skipped.values()) == len(records)
    assert any(document.id == "29337475" for document in documents)  # a book article
    place = dict.fromkeys(SPLITS, 0)
    for document in documents[:200]:
        split = "heldout" if is_held_out(document.id, 0.01) else "train"
        expected = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        stored = splits[split].document(place[split])
        if stored.tolist() == expected:
            place[split] += 1
    assert sum(place.values()) >= 200 - totals.skipped.get("superseded", 0) - totals.skipped.get("duplicate", 0)
