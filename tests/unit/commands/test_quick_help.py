"""Help, version, lists and completion: no heavy module is imported for them, and every command is completed."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bnb_ds.cli import _COMMANDS, _parser, main
from bnb_ds.commands import export
from bnb_ds.model.settings_rules import DECODER_LENGTH_POLICIES
from data_prep.commands.prep import _COMMANDS as PREP
from data_prep.tokenise.engines import ENGINES
from data_prep.tokenise.names import ENGINE_NAMES

#: each takes longer to import than a person should wait for a help text
HEAVY = ("torch", "transformers", "deepspeed", "datasets", "pyarrow", "scipy", "sklearn", "matplotlib", "fastapi")
_SHOW_HELP = """
import contextlib, io, sys
from bnb_ds.cli import main
for line in sys.stdin.read().splitlines():
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(line.split())
    loaded = [name for name in sys.argv[1:] if name in sys.modules]
    assert not loaded, f"`bnb-ds {line}` imports {loaded}"
"""


def test_help_version_and_lists_import_nothing_heavy():
    commands = [[], ["bench"], ["prep"], *([name] for name, _, _ in _COMMANDS), *(["prep", each.name] for each in PREP)]
    lines = [
        "--version",
        "reproduce --list",
        "recipes",
        "path finetune",
        *(" ".join([*command, "--help"]) for command in commands),
    ]
    run = [sys.executable, "-c", _SHOW_HELP, *HEAVY]
    result = subprocess.run(run, input="\n".join(lines), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_names_that_help_shows_without_importing_their_owners():
    assert ("auto", *ENGINES) == ENGINE_NAMES
    assert export._DECODER_LENGTHS == DECODER_LENGTH_POLICIES


@pytest.fixture(scope="module")
def whole_parser():
    parser = _parser()
    parser.load_all()
    return parser


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """All commands without commands of their own."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for command in action.choices.values():
            yield from commands(command)
    if not below:
        yield parser


def test_every_command_has_a_description_and_an_example(whole_parser):
    lacking = [each.prog for each in commands(whole_parser) if not each.description or "example" not in each.epilog]
    assert lacking == []


def test_every_flag_with_a_value_tells_its_default_or_is_required(whole_parser):
    silent = []
    for command in commands(whole_parser):
        command.format_help()
        for action in command._actions:
            if action.option_strings and action.nargs != 0 and not action.required and action.help != argparse.SUPPRESS:
                silent += [f"{command.prog} {action.option_strings[0]}"] * ("default" not in action.help)
    assert silent == []


def flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from flags(below)


def test_all_flags_have_dashes(whole_parser):
    found = set(flags(whole_parser))
    assert {"--deepspeed-config", "--num-gpus", "--beam-size"} <= found
    assert [flag for flag in found if "_" in flag] == []


def test_a_flag_with_underscores_means_the_same():
    line = ["check", "r", "--deepspeed_config=d_s.json", "--world_size", "2", "a_b.c_d=--e_f"]
    args = _parser().parse_args(line)
    assert (args.deepspeed_config, args.world_size, args.overrides) == ("d_s.json", 2, ["a_b.c_d=--e_f"])
    with pytest.raises(SystemExit):
        main(["check", "r", "--deepspeed_config", "d", "--no_such_flag"])


def completed(script: str, line: str) -> set[str]:
    """What bash offers for the last word of a line."""
    words = line.split(" ")
    code = f"""
{script}
COMP_WORDS=({" ".join(words[:-1])} "{words[-1]}") COMP_CWORD={len(words) - 1}
_shtab_bnb_ds
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    return set(subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_completion(capsys, tmp_path, monkeypatch):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completed(script, "bnb-ds gen") == {"generate"}
    assert completed(script, "bnb-ds prep te") == {"text"}
    assert completed(script, "bnb-ds pretrain r --deep") == {"--deepspeed-config"}
    assert completed(script, "bnb-ds generate m --dtype b") == {"bf16"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    assert completed(script, "bnb-ds pretrain mi") == {"mine.yaml"}
    for shell in ("zsh", "tcsh"):
        assert main(["completion", shell]) == 0
        assert "reconstruct" in capsys.readouterr().out
