"""The help of the two training programs: every flag states its default, and the example names files that exist."""

from __future__ import annotations

import re

import pytest

from bnb_ds.finetune import main as finetune
from bnb_ds.pretrain import main as pretrain
from tests.launching import REPOSITORY


@pytest.mark.parametrize("module", [pretrain, finetune], ids=["pretrain", "finetune"])
def test_help(module, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", ["program", "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    shown = capsys.readouterr().out
    options, example = shown.partition("show this help message and exit\n")[2].split("\n\nexample:\n")
    flags = {text.split()[0]: " ".join(text.split()) for text in re.split(r"^  (?=--)", options, flags=re.M)[1:]}
    assert len(flags) == 8
    assert [flag for flag, text in flags.items() if "(default" not in text] == ["--deepspeed-config"]
    assert "(required)" in flags["--deepspeed-config"]
    for file in re.findall(r"\S+/\S+", example):
        assert (REPOSITORY / file).is_file(), file
    assert max(map(len, shown.partition("\nexample:\n")[0].splitlines())) <= 80


def test_a_launch_that_is_interrupted_says_how_to_go_on(monkeypatch, capsys):
    """Before the first step, or with a second Ctrl-C."""

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bnb_ds.pretrain.plan.make_plan", interrupted)
    monkeypatch.setattr("sys.argv", ["pretrain.py", "recipe.yaml", "--deepspeed_config", "ds.json"])
    assert pretrain.main() == 130
    said = "pretrain.py: interrupted; add --resume auto to continue from the newest checkpoint, if there is one\n"
    assert capsys.readouterr().err == said
