"""`bnb-ds generate` keeps an output that exists, unless the user says what should become of it."""

from __future__ import annotations

import pytest

from bnb_ds.cli import main
from bnb_ds.generate.pipeline import BnbPipeline
from tests.exports import save_model


@pytest.fixture(scope="module")
def exported(small_tokenizer, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("exported") / "model", small_tokenizer)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in").write_text("".join(f"line {number}\n" for number in range(12)))
    return tmp_path / "in"


@pytest.fixture
def whole(exported, source, tmp_path) -> bytes:
    assert generate(exported, source, tmp_path / "whole") == 0
    return (tmp_path / "whole").read_bytes()


def generate(model, source, target, *arguments: str) -> int:
    return main(["generate", str(model), "--input", str(source), "--output", str(target), "--window", "5", *arguments])


def test_it_is_refused_or_replaced(exported, source, whole, tmp_path, monkeypatch, capsys):
    target = tmp_path / "o"
    target.write_text("mine")
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(BnbPipeline, "from_pretrained", None)  # refused before the model is loaded
        for arguments in ([], ["--processes", "2"]):
            assert generate(exported, source, target, *arguments) == 2
            assert capsys.readouterr().err == (
                f"bnb-ds: error: {target}: already exists; add --overwrite to replace it, --resume to go on with an"
                " unfinished one, or choose another output\n"
            )
        assert generate(exported, source, target, "--resume", "--overwrite") == 2
        assert "--resume goes on with an output, and --overwrite replaces it: give one" in capsys.readouterr().err
    assert target.read_text() == "mine"
    for _ in range(2):
        assert generate(exported, source, target, "--overwrite") == 0
        assert target.read_bytes() == whole


def test_an_empty_file_is_no_output_to_keep(exported, source, whole, tmp_path):
    (tmp_path / "o").touch()  # as mktemp makes it
    assert generate(exported, source, tmp_path / "o") == 0
    assert (tmp_path / "o").read_bytes() == whole


def test_an_unfinished_output_can_be_thrown_away(exported, source, whole, tmp_path, monkeypatch, capsys):
    plain, calls = BnbPipeline.generate, []

    def failing(self, texts, **options):
        calls.append(texts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(self, texts, **options)

    with monkeypatch.context() as patch:
        patch.setattr(BnbPipeline, "generate", failing)
        assert generate(exported, source, tmp_path / "o") == 130
    assert (tmp_path / "o.partial").stat().st_size > 0
    assert generate(exported, source, tmp_path / "o") == 2
    assert "unfinished: add --resume to go on, or --overwrite to begin again" in capsys.readouterr().err
    assert generate(exported, source, tmp_path / "o", "--overwrite") == 0
    assert (tmp_path / "o").read_bytes() == whole
