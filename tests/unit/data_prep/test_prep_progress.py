"""What is shown while a corpus is made, and the benchmark."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bnb_ds.cli import main
from bnb_ds.data.tokenization import save_tokenizer
from bnb_ds.errors import ConfigError, DataError
from data_prep.jobs import progress
from data_prep.jobs.progress import Progress
from data_prep.tools import bench, bench_parse
from tests.prep_helpers import prep


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_TERMINAL_SECONDS", 0.0)
    reporter = Progress(stream=stream)
    reporter.counters.add(documents=5)
    with reporter.phase("build (words)", 3 << 20):
        reporter.counters.add(documents=1200, tokens=34_000, skipped=7, num_bytes=1 << 20)
        reporter.refresh()
        reporter.say("engine x: not used")
    return stream.getvalue()


LINE = r"build \(words\): 1,200 documents, 34,000 tokens, [\d.]+ Mtok/s, 7 skipped, 2 MiB left"


def test_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(LINE + "\nengine x: not used\n", shown(io.StringIO(), monkeypatch))


def test_one_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Terminal(), monkeypatch)
    assert re.search("\r\x1b\\[K" + LINE + "\r\x1b\\[Kengine x: not used\n\r\x1b\\[K$", text)


def test_silence() -> None:
    stream = io.StringIO()
    reporter = Progress(silent=True, stream=stream)
    with reporter.phase("index", 1):
        reporter.refresh()
        reporter.say("x")
    assert stream.getvalue() == ""


# The benchmark


@pytest.fixture
def rows(tmp_path: Path, small_texts: list[str], small_tokenizer) -> list[str | Path]:
    pq.write_table(pa.table({"text": small_texts}), tmp_path / "a.parquet")
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer")
    return ["bench", "--input", tmp_path / "a.parquet", "--tokenizer", tmp_path / "tokenizer", "--rounds", "1"]


@pytest.mark.slow
def test_bench(rows, capsys: pytest.CaptureFixture) -> None:
    prep(*rows, "--contenders", "datasets.map", "tokenizer alone", "prep words", "--workers", "1", "2")
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"[\d,]+ tokens, median of 1 rounds in turn", lines[0])
    rows_of_table = [" ".join(line.split(" | ")[:2]) for line in lines[3:]]
    assert rows_of_table == [
        "| datasets.map 1", "| datasets.map 2", "| tokenizer alone 1", "| prep words 1", "| prep words 2"
    ]  # fmt: skip
    ratios = [line.split(" | ")[5:8] for line in lines[3:]]
    assert ratios[0][:2] == ratios[1][:2] == ["1.00", "1.00"]  # the first contender beside itself
    assert ratios[0][2] == ratios[2][2] == ratios[3][2] == "1.00"  # every contender's first number of processes
    assert "1.00" not in (*ratios[2][:2], *ratios[3][:2])


def test_bench_refuses(rows, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--contenders: no 'x'; choose from datasets\.map, tokenizer alone, prep"):
        prep(*rows, "--contenders", "x")
    with pytest.raises(ConfigError, match="--rounds must be at least 1, got 0"):
        prep(*rows, "--rounds", "0")
    with pytest.raises(ConfigError, match="--workers must be at least 1, got 0"):
        prep(*rows, "--workers", "2", "0")
    with pytest.raises(DataError, match=r"tokenizer alone failed: .*no such file or directory"):
        prep(*rows, "--contenders", "tokenizer alone", "--input", tmp_path / "nowhere.parquet")
    with pytest.raises(ConfigError, match="needs one of --input PATH, --parse FILE and --extract FILE"):
        prep("bench")
    with pytest.raises(ConfigError, match="--input needs --tokenizer DIRECTORY"):
        prep(*rows[:3])


def test_bench_of_contenders_that_disagree(rows, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([2, 1])
    monkeypatch.setattr(bench, "_run", lambda *_: bench.Timing(1.0, 1.0, next(counts), 1))
    with pytest.raises(DataError, match=r"the contenders made different numbers of tokens: \[1, 2\]"):
        prep(*rows, "--contenders", "tokenizer alone", "prep words")


def test_bench_of_parsing(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.xml"
    path.write_text(
        "<PubmedArticleSet><PubmedArticle><MedlineCitation><PMID>1</PMID></MedlineCitation></PubmedArticle>"
        "</PubmedArticleSet>"
    )
    monkeypatch.setitem(sys.modules, "pubmed_parser", None)
    with pytest.raises(ConfigError, match="--parse: pubmed_parser is not installed; `pip install pubmed_parser`"):
        prep("bench", "--parse", path)
    stub = SimpleNamespace(parse_medline_xml=lambda path: [{"pmid": "1"}])
    monkeypatch.setitem(sys.modules, "pubmed_parser", stub)
    monkeypatch.setattr(bench_parse, "_LEAST_SECONDS", 0.001)
    with pytest.raises(ConfigError, match="--rounds must be at least 1, got 0"):
        prep("bench", "--parse", path, "--rounds", "0")
    prep("bench", "--parse", path, "--rounds", "1")
    assert re.match(r"\| a\.xml \| 1 \| ", capsys.readouterr().out.splitlines()[3])


def test_bench_prep_is_prep_bench(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "prep", "--help"])
    assert stop.value.code == 0
    assert "--parse FILE" in capsys.readouterr().out
    assert main(["bench", "prep"]) == 2
    assert "needs one of --input PATH, --parse FILE and --extract FILE" in capsys.readouterr().err
