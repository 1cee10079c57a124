"""Every command that writes texts warns when most of them are empty, and says what that means."""

from __future__ import annotations

import json

import pytest
import torch

from bnb_ds.cli import main
from bnb_ds.common.empty_outputs import count_empty, empty_warning
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.tasks.codec import Codec
from tests.exports import save_model, save_task_model

WARNING = "outputs are empty: the model reads no token off its slots. So it is after too few steps of training"


def silence(directory):
    """Let a model put the blank into every slot, as models do when their training begins."""
    model = BnbForConditionalGeneration.from_pretrained(directory)
    with torch.no_grad():
        model.lm_head.bias[model.config.blank_token_id] = 1e6
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def silent(small_tokenizer, tmp_path_factory):
    return silence(save_model(tmp_path_factory.mktemp("silent") / "model", small_tokenizer))


@pytest.fixture(scope="module")
def silent_summariser(small_tokenizer, tmp_path_factory):
    codec = Codec(small_tokenizer, small_tokenizer)
    return silence(save_task_model(tmp_path_factory.mktemp("silent") / "tuned", "summarization", codec))


@pytest.mark.parametrize(("empty", "total", "warns"), [(0, 0, False), (1, 2, False), (2, 3, True), (3, 3, True)])
def test_more_than_half(empty, total, warns):
    assert (empty_warning(empty, total) is not None) == warns
    assert count_empty(["", "  ", "a"]) == 2


def test_generate_warns_and_does_not_count_empty_lines(silent, tmp_path, capsys):
    (tmp_path / "in").write_text("some words\n\nand more\n")
    arguments = ["generate", str(silent), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert f"\nwarning: 2 of 2 {WARNING}" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "\n\n\n"


def test_generate_does_not_warn_of_a_model_that_writes(small_tokenizer, tmp_path, capsys):
    model = save_model(tmp_path / "model", small_tokenizer)
    (tmp_path / "in").write_text("some words\n\n\n\nand more\n")
    assert main(["generate", str(model), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 0
    assert "warning" not in capsys.readouterr().err


def test_an_output_of_an_earlier_version_is_continued(silent, tmp_path):
    (tmp_path / "in").write_text("some words\n")
    arguments = ["generate", str(silent), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    progress = tmp_path / "out.progress.json"
    state = json.loads(progress.read_text())
    del state["counts"]["unwritten"]
    progress.write_text(json.dumps(state))
    assert main([*arguments, "--resume"]) == 0


def test_reconstruct_warns(silent, small_shards, capsys):
    assert main(["reconstruct", str(silent), "--shards", str(small_shards), "--num", "3", "--max-length", "12"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(f"warning: 3 of 3 {WARNING}")
    assert captured.out.count("output    \n") == 3


def test_evaluate_and_predict_warn(silent_summariser, tmp_path, capsys):
    rows = [{"document": f"some text {i}", "summary": "the text"} for i in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = ["--set", f"data.validation={tmp_path}/rows.jsonl", "--set", f"data.cache_dir={tmp_path}/cache"]
    assert main(["evaluate", str(silent_summariser), *places, "--output", str(tmp_path / "scores")]) == 0
    assert f"warning: 5 of 5 {WARNING}" in capsys.readouterr().err
    output = ["--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "said.jsonl")]
    assert main(["predict", str(silent_summariser), *output]) == 0
    assert f"warning: 5 of 5 {WARNING}" in capsys.readouterr().out
