"""``bnb-ds bench prep --extract``: the table, its measures, and what it says of wrong input."""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bnb_ds.errors import ConfigError, DataError
from data_prep.commands.bench import add_arguments
from data_prep.tools import bench_extract
from data_prep.tools.bench_extract import OURS, sentence_shares, word_shares

TEXT = "The ''first'' sentence of [[this|the]] page.<ref>x</ref> A second one stands here.\n* an entry of a list\n"
PLAIN = "The first sentence of the page. A second one stands here, too.\n"


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    page = "<page><title>{}</title><id>{}</id><revision><text>{}</text></revision></page>"
    source = TEXT.replace("<", "&lt;").replace(">", "&gt;")
    pages = page.format("One", 1, source) + page.format("Two", 2, source) + page.format("R", 3, "#REDIRECT [[One]]")
    (tmp_path / "dump.xml").write_text(f"<mediawiki>{pages}</mediawiki>")
    return tmp_path / "dump.xml"


def reference(path: Path, title: str = "One") -> Path:
    pq.write_table(pa.table({"title": [title, "Other"], "text": [PLAIN, "x"]}), path)
    return path


def bench(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args([str(argument) for argument in arguments])
    args.run(args)


def test_a_table_of_speed_and_accuracy(dump: Path, tmp_path: Path, capsys) -> None:
    bench("--extract", dump, "--reference", reference(tmp_path / "r.parquet"), "--rounds", 2, "--contenders", OURS)
    title, head, _, row = capsys.readouterr().out.splitlines()
    assert title == "2 articles, 0.0 MB of wikitext, median of 2 rounds in turn; 1 of the articles are in the reference"
    expected = [f"{what} {share}" for what in ("words", "sentences") for share in ("precision", "recall", "F1")]
    assert [cell.strip() for cell in head.split("|")[6:-1]] == expected
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert (cells[0], cells[3], cells[4]) == (OURS, "1.00", "32")
    assert cells[5:] == [
        "68.8%",
        "91.7%",
        "78.6%",
        "33.3%",
        "50.0%",
        "40.0%",
    ]  # 11 of 16 and of 12 words, 1 of 3 and of 2 sentences


def test_without_lists_and_without_a_reference(dump: Path, tmp_path: Path, capsys) -> None:
    bench("--extract", dump, "--rounds", 1, "--contenders", OURS, "--without-lists")
    title, head, _, row = capsys.readouterr().out.splitlines()
    assert title.endswith("; no reference")
    assert "precision" not in head
    assert row.split("|")[5].strip() == "22"


def test_every_contender_that_is_installed(dump: Path, capsys) -> None:
    bench("--extract", dump, "--rounds", 1)
    rows = capsys.readouterr().out.splitlines()[3:]
    names = [row.split("|")[1].strip() for row in rows]
    assert names[0] == OURS
    assert set(names) <= set(bench_extract.CONTENDERS)


def test_lists_within_templates_stay_whole() -> None:
    source = "a\n* b {{c}}\n* {{d\n|e}}\n: [[f]]\n"
    assert bench_extract._without_lists(source) == "a\n* {{d\n|e}}\n"


def test_measures_tell_good_from_bad() -> None:
    assert word_shares(PLAIN, PLAIN) == sentence_shares(PLAIN, PLAIN) == bench_extract.Shares(1, 1)
    assert word_shares("page the of", PLAIN).precision < 0.7
    assert word_shares("", PLAIN) == sentence_shares("", PLAIN) == bench_extract.Shares(0, 0)
    assert sentence_shares(PLAIN.replace(". A", " A"), PLAIN) == bench_extract.Shares(0, 0)
    assert sentence_shares(PLAIN * 2, PLAIN) == bench_extract.Shares(0.5, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--contenders", "other"],
            "--contenders: no 'other'; choose from prep wikipedia, mwparserfromhell strip_code",
        ),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--input", "a"], "needs one of --input PATH, --parse FILE and --extract FILE"),
    ],
)
def test_wrong_arguments(dump: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench("--extract", dump, *arguments)


def test_a_reference_without_its_subject(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--reference needs --extract FILE"):
        bench("--parse", "a", "--reference", "b")


def test_a_contender_that_is_not_installed(dump: Path, monkeypatch) -> None:
    monkeypatch.setitem(bench_extract.CONTENDERS, "absent", ("no_such_module", lambda: str))
    with pytest.raises(ConfigError, match="--contenders: absent needs no_such_module; `pip install no_such_module`"):
        bench("--extract", dump, "--contenders", "absent")


def test_references_that_do_not_serve(dump: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"r.parquet: holds none of the 2 articles; choose another --reference"):
        bench("--extract", dump, "--rounds", 1, "--reference", reference(tmp_path / "r.parquet", "None"))
    pq.write_table(pa.table({"title": ["One"]}), tmp_path / "s.parquet")
    with pytest.raises(DataError, match=r"s.parquet: no parquet with columns title and text \(.*\); mend --reference"):
        bench("--extract", dump, "--rounds", 1, "--reference", tmp_path / "s.parquet")
