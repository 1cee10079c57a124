"""The command line: its help, and how errors reach the user."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys

import pytest

from bnb_ds import errors
from bnb_ds.bench.subjects import _SUBJECTS
from bnb_ds.cli import _COMMANDS, _parser, main
from bnb_ds.errors import ConfigError, run_reporting_errors
from bnb_ds.version import __version__


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"bnb-ds {__version__}\n"


def test_help_lists_the_commands_of_both_packages(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("prep", "bench", "export", "generate", "reconstruct", "curves"))


OURS = [[name] for name, _, _ in _COMMANDS] + [["bench", name] for name, _, _ in _SUBJECTS]


@pytest.mark.parametrize("command", OURS, ids=" ".join)
def test_help_describes_a_command_and_shows_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    description = shown.split("\n\n")[1]
    assert description[0].isupper()
    assert description[-1] in ".)"
    program, *arguments = shlex.split(shown.split("example:\n")[1])
    assert program == "bnb-ds"
    assert arguments[: len(command)] == command
    assert callable(_parser().parse_args(arguments).run)


@pytest.mark.parametrize("command", OURS, ids=" ".join)
def test_help_explains_every_argument(command):
    parser = _parser()
    for name in command:
        (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = subparsers.choices[name]
    with pytest.raises(SystemExit):
        parser.parse_known_args(["--help"])
    for action in parser._actions:
        assert action.help, action.dest
        if action.default not in (None, False, [], argparse.SUPPRESS):
            assert "%(default)s" in action.help, f"{action.dest}: the help does not show the default"


@pytest.mark.parametrize(
    "arguments", [[], ["nothing"], ["generate", "m", "--input", "-", "--output", "-", "--window", "0"]]
)
def test_misuse_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: bnb-ds" in capsys.readouterr().err


def test_a_number_below_0_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["reconstruct", "m", "--shards", "s", "--seed", "-1"])
    assert stop.value.code == 2
    assert "argument --seed: a whole number of at least 0 is required, not -1" in capsys.readouterr().err


def test_a_users_error_is_one_line(capsys):
    def fail():
        raise ConfigError("first line\n  second line")

    assert run_reporting_errors("tool", fail) == 2
    assert capsys.readouterr().err == "tool: error: first line second line\n"


def test_rank_0_reports_first(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr("bnb_ds.errors._RANK_0_REPORTS_FIRST_SECONDS", 0.01)

    def fail():
        raise ConfigError("broken")

    assert run_reporting_errors("tool", fail) == 2
    assert capsys.readouterr().err == "tool: error on rank 3: broken\n"


def test_our_own_faults_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_reporting_errors("tool", lambda: 1 // 0)


def test_a_closed_pipe_is_no_traceback():
    # Only this module is loaded, which is quick: it imports nothing else of the package.
    report = f"__import__('runpy').run_path({errors.__file__!r})['run_reporting_errors']"
    code = f"raise SystemExit({report}('tool', lambda: print('line\\n' * 100_000)))"
    command = f"{sys.executable} -c {shlex.quote(code)} | head -n 1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr, result.returncode) == ("line\n", "", 1)
