"""What every command owes its caller: standard streams that fail, other locales, signals, flags in full."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bnb_ds.cli import _parser, main
from bnb_ds.commands.launch_check import Findings
from bnb_ds.common import program
from bnb_ds.common.files import new_file
from bnb_ds.common.program import run_command, speak_utf8
from bnb_ds.errors import CONTINUE, CONTINUE_WITH_RESUME, REPEAT
from bnb_ds.evaluate.model import Evaluation
from bnb_ds.pretrain.main import PROGRAM
from bnb_ds.train.launch import launch_parser
from data_prep.sources.docs import DocsReport
from tests.standard_streams import run_closed, run_full, run_to_file, run_unread, standard_output

NO_SPACE = "bnb-ds: error: standard output: cannot write: No space left on device\n"
CLOSED = "bnb-ds: error: standard output: cannot write: it is closed; redirect it to a file or to /dev/null\n"
ODD = "ä日\udcff"  # what no Latin-1 holds, and a byte of a file's name that is not UTF-8


EVALUATED = {"task": "t", "split": "s", "num_samples": 1, "rows": [], "settings": {}, "ceilings": {}, "scores": {}}
#: command -> arguments, the function that does the work, and what a function in its place returns
COMMANDS = {
    "average": (["run", "--last", "1", "--output", ODD], "bnb_ds.export.from_run.export_average", []),
    "check": (["r.yaml", "--deepspeed_config", "d"], "bnb_ds.commands.launch_check.check", Findings([ODD], [])),
    "compare": (["a", "b"], "bnb_ds.evaluate.significance.compare", ODD),
    "curves": (["run"], "bnb_ds.train.tracking.read_scalars", {ODD: [(1, 2.0)]}),
    "distill": (["teacher", "--output", "o"], "bnb_ds.finetune.distillation.distill", ODD),
    "evaluate": (["m"], "bnb_ds.evaluate.model.evaluate_model", Evaluation(Path(ODD), EVALUATED)),
    "export": (["run", ODD], "bnb_ds.export.from_run.export", ("run", [])),
    "export --format onnx": (["m", ODD], "bnb_ds.export.onnx.export_onnx", None),
    "glue": (["r", "--deepspeed_config", "d", "--output", "o"], "bnb_ds.finetune.glue.run_glue", ODD),
    "import-reference": (["a", ODD], "bnb_ds.export.import_reference.import_reference", []),
    "import-optimus": (["a", ODD], "bnb_ds.export.import_optimus.import_optimus", []),
    "predict": (["m", "--input", "i", "--output", "o"], "bnb_ds.evaluate.predict.predict", [ODD]),
    "prep docs": (["--output", ODD], "data_prep.sources.docs.write_docs", DocsReport(1, 2, 3, 4)),
    "prep vocab": (["--input", "in.txt", "--output", ODD], "data_prep.tokenise.vocab.train_vocabulary", [1]),
    "reconstruct": (["m", "--shards", "s"], "bnb_ds.generate.reconstruct.reconstructions", [(ODD, ODD, ODD)]),
    "reproduce": (["--list"], "bnb_ds.reproduce.listing.listing", ODD),
}


@pytest.fixture(params=COMMANDS)
def command(request, monkeypatch, tmp_path) -> list[str]:
    """The arguments of a command whose work takes no time."""
    arguments, function, result = COMMANDS[request.param]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("text\n")
    monkeypatch.setattr(function, lambda *args, **kwargs: result)
    return [*request.param.split(), *arguments]


def test_output_is_utf8_in_every_locale(command, tmp_path):
    code, said = run_to_file(command, tmp_path / "out")
    assert code == 0
    assert ODD.encode("utf-8", "surrogateescape") in said


def test_a_full_disk_is_one_line(command, capsys):
    assert run_full(command) == 2
    assert capsys.readouterr().err == NO_SPACE


def test_a_closed_output_is_one_line(command, capsys):
    assert run_closed(command) == 2
    assert capsys.readouterr().err == CLOSED


def test_a_reader_that_has_gone_is_no_line(command, capsys):
    assert run_unread(command) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "bnb-ds: interrupted; {next_step}\n"),
        (program.Ended(signal.SIGTERM), 143, "bnb-ds: ended by SIGTERM\n"),
        (program.Ended(signal.SIGHUP), 129, "bnb-ds: ended by SIGHUP\n"),
    ],
)
@pytest.mark.parametrize("name", COMMANDS)
def test_signals_are_one_line_and_an_exit_code(name, raised, code, said, monkeypatch, tmp_path, capsys):
    arguments, function, _ = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("text\n")

    def end(*args: object, **kwargs: object) -> None:
        raise raised

    monkeypatch.setattr(function, end)
    assert main([*name.split(), *arguments]) == code
    next_step = {"distill": CONTINUE_WITH_RESUME, "glue": CONTINUE}.get(name, REPEAT)
    assert capsys.readouterr().err == said.format(next_step=next_step)


def test_a_real_signal_removes_what_was_begun(tmp_path, capsys):
    def work() -> None:
        with new_file(tmp_path / "o"):
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("must not be reached")

    assert run_command("tool", work) == 143
    assert capsys.readouterr().err == "tool: ended by SIGTERM\n"
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("ask", "reason"),
    [(lambda: bytearray(1 << 62), "Python"), (lambda: torch.empty(1 << 50, dtype=torch.uint8), "allocate")],
    ids=["Python", "torch"],
)
def test_too_little_memory_is_one_line(ask, reason, capsys):
    assert run_command("bnb-ds", ask) == 2
    said = capsys.readouterr().err
    assert said.startswith("bnb-ds: error: out of memory (")
    assert said.endswith("); use smaller batches, or a smaller beam\n")
    assert reason in said
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run_command("bnb-ds", lambda: (_ for _ in ()).throw(RuntimeError("a fault of ours")))


def test_a_name_that_the_locale_cannot_write_is_one_line(capsys):
    assert run_command("bnb-ds", lambda: os.mkdir("/nowhere/日".encode("latin-1"))) == 2
    said = (
        "bnb-ds: error: '/nowhere/\\u65e5' has characters that this locale (latin-1) cannot write; set PYTHONUTF8=1, or"
    )
    assert capsys.readouterr().err == f"{said} LC_ALL to a UTF-8 locale\n"
    with pytest.raises(UnicodeEncodeError):
        run_command("bnb-ds", lambda: print("\udcff".encode()))


def test_ctrl_c_that_a_library_loses_is_one_line(monkeypatch, capsys):
    """torch drops it while it imports numpy, and what is half imported fails."""

    def lose(*args: object) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        raise ImportError("cannot load module more than once per process")

    arguments, function, _ = COMMANDS["check"]
    monkeypatch.setattr(function, lose)
    assert main(["check", *arguments]) == 130
    assert capsys.readouterr().err == f"bnb-ds: interrupted; {REPEAT}\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.setattr(function, lambda *args: {}["a fault of ours"])
    with pytest.raises(KeyError):
        main(["check", *arguments])


def test_a_signal_that_is_ignored_stays_so(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert run_command("tool", lambda: os.kill(os.getpid(), signal.SIGHUP)) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_error_that_somebody_swallows_is_noticed_at_the_end(capsys):
    def work() -> None:
        with contextlib.suppress(ValueError):
            print("x" * 100_000)
        print("more")

    with open("/dev/full", "wb") as file, standard_output(file.fileno()):
        assert run_command("bnb-ds", work) == 2
    assert capsys.readouterr().err == NO_SPACE


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A cheap command in a real shell; `BNB` stands for bnb-ds."""
    line = line.replace("BNB", f"{sys.executable} -m bnb_ds.cli")
    environment = {**os.environ, **variables}
    return subprocess.run(["bash", "-c", line], capture_output=True, encoding="utf-8", check=False, env=environment)


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("BNB recipes >/dev/full", 2, NO_SPACE),
        ("BNB --help >/dev/full", 2, NO_SPACE),
        ("BNB recipes >&-", 2, CLOSED),
        ("BNB --version >&-", 2, CLOSED),
        ("BNB recipes <&- >/dev/null", 0, ""),
        ("BNB recipes 2>&- >/dev/null", 0, ""),
        ("BNB recipes 2>/dev/full >/dev/null", 0, ""),
        ("BNB nothing 2>/dev/full", 2, ""),
        ("BNB nothing 2>&-", 2, ""),
    ],
)
def test_real_streams(line, code, said):
    result = shell(line)
    assert (result.returncode, result.stderr) == (code, said)


def test_a_latin_1_locale_changes_no_byte():
    code = "from bnb_ds.common.program import run_command as run; run('tool', lambda: print('\\xe4\\u65e5'))"
    for name in ("latin-1", "ascii", "utf-8"):
        assert shell(f'{sys.executable} -c "{code}"', PYTHONIOENCODING=name).stdout == "ä日\n"


def test_training_speaks_utf8(tmp_path, monkeypatch):
    with open(tmp_path / "o", "w", encoding="latin-1") as file:
        monkeypatch.setattr(sys, "stdout", file)
        speak_utf8()
        print(ODD)
    assert (tmp_path / "o").read_bytes() == f"{ODD}\n".encode("utf-8", "surrogateescape")


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser, and all below it, with their arguments."""
    with contextlib.suppress(SystemExit):
        parser.parse_known_args(["--help"])
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def test_no_parser_takes_abbreviations(capsys):
    found = [*parsers(_parser()), launch_parser(PROGRAM)]
    assert len(found) > 30
    assert [parser.prog for parser in found if parser.allow_abbrev] == []


@pytest.mark.parametrize("arguments", [["generate", "m", "--input", "i", "--output", "o", "--process", "2"]])
def test_an_abbreviated_flag_is_an_error(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "unrecognized arguments: --process 2" in capsys.readouterr().err
