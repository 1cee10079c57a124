"""A trained run is exported, loaded with transformers, and used on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

import bnb_ds
from bnb_ds.checkpoint.store import whole_checkpoints
from bnb_ds.checkpoint.weights import read_weights
from bnb_ds.cli import main
from bnb_ds.shards.reader import TokenShards

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(whole_run, tmp_path_factory):
    output = tmp_path_factory.mktemp("export") / "model"
    assert main(["export", str(whole_run.output), str(output)]) == 0
    return output


def test_export_is_a_hugging_face_directory(exported, whole_run, small_shards):
    assert {path.name for path in exported.iterdir()} >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
    }
    card = (exported / "README.md").read_text()
    assert TokenShards(small_shards, "train").fingerprint in card
    assert f"pretrain.py {Path(whole_run.recipe).name}" in card.replace("--local_rank=0 ", "")
    assert str(whole_run.output.parent) not in card  # no paths of this machine
    generation = json.loads((exported / "generation_config.json").read_text())
    special = TokenShards(small_shards, "train").special_ids
    assert (generation["pad_token_id"], generation["eos_token_id"]) == (special["pad"], special["sep"])


def test_auto_classes_load_the_training_models_logits(exported, whole_run):
    """The trained model: its configuration with the weights that DeepSpeed saved."""
    trained = bnb_ds.BnbForConditionalGeneration(bnb_ds.BnbConfig.from_pretrained(whole_run.output / "model")).eval()
    trained.load_state_dict(read_weights(whole_checkpoints(whole_run.output / "checkpoints")[-1]))
    loaded = AutoModelForSeq2SeqLM.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    inputs = tokenizer(
        ["one short line", "and a line that is somewhat longer than it"], padding=True, return_tensors="pt"
    )
    arguments = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert (loaded(**arguments).logits - trained(**arguments).logits).abs().max() <= 1e-5
    assert isinstance(AutoModel.from_pretrained(exported), bnb_ds.BnbModel)
    output = loaded.generate(**arguments)
    assert output.dtype == torch.int64
    assert output.shape[0] == 2


def test_generate_writes_one_line_for_each(exported, tmp_path):
    lines = ["the first line", "", "the third line of the file", "  "] * 5
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("\n".join(lines) + "\n")
    arguments = ["generate", str(exported), "--input", str(source), "--output", str(target)]
    assert main([*arguments, "--window", "3"]) == 0
    by_three = target.read_text()
    assert main([*arguments, "--overwrite"]) == 0
    assert target.read_text() == by_three
    written = by_three.split("\n")
    assert len(written) == len(lines) + 1
    assert all(written[i] == "" for i, line in enumerate(lines) if not line.strip())


def test_generate_says_what_it_cut(exported, tmp_path, capsys):
    source = tmp_path / "in.txt"
    source.write_text("word " * 500 + "\nshort\n")
    assert main(["generate", str(exported), "--input", str(source), "--output", str(tmp_path / "o")]) == 0
    assert "2 lines" in (message := capsys.readouterr().err)
    assert "1 cut to the model's 64 tokens" in message


def test_generate_reads_and_writes_streams(exported, capsys, monkeypatch):
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a line\nanother line\n")))
    assert main(["generate", str(exported), "--input", "-", "--output", "-"]) == 0
    assert capsys.readouterr().out.count("\n") == 2


def test_reconstruct_shows_held_out_documents(exported, small_shards, capsys):
    assert main(["reconstruct", str(exported), "--shards", str(small_shards), "--num", "2", "--max-length", "12"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("source    ") == shown.count("output    ") == shown.count("original  ") == 2
    shards = TokenShards(small_shards, "heldout")
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert f"original  {tokenizer.decode(np.asarray(shards.document(0)[:10], np.int64))}\n" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["generate", "{tmp}", "--input", "-", "--output", "-"],
            "{tmp}: not an exported model; give one that `bnb-ds export` wrote",
        ),
        (
            ["generate", "{run}", "--input", "-", "--output", "-"],
            "{run}: is the output_dir of a run, not a model; make one with `bnb-ds export {run} NEW`, and give NEW",
        ),
        (["reconstruct", "{run}", "--shards", "{shards}"], "{run}: is the output_dir of a run, not a model; make one"),
        (["evaluate", "{run}"], "{run}: is the output_dir of a run, not a model; make one with"),
        (["evaluate", "{run}", "--task", "xsum"], "{run}: is the output_dir of a run, not a model; make one with"),
        (
            ["generate", "{tmp}/none", "--input", "-", "--output", "-"],
            "{tmp}/none: no such directory; give a model",
        ),
        (["generate", "{model}", "--input", "{tmp}/none", "--output", "-"], "--input {tmp}/none: cannot be read"),
        (
            ["generate", "{model}", "--input", "{latin1}", "--output", "{tmp}/no/o"],
            "--output {tmp}/no/o: there is no directory",
        ),
        (["export", "{tmp}", "{tmp}/new"], "{tmp}: no whole checkpoint here; name a step_* directory or a run's"),
        (["export", "{run}", "{model}"], "{model}: already exists"),
        (["reconstruct", "{model}", "--shards", "{shards}", "--max-length", "65"], "--max-length 65: give 3 to 64"),
        (["reconstruct", "{model}", "--shards", "{shards}", "--mask-probability", "2"], "--mask-probability 2.0: give"),
        (["reconstruct", "{model}", "--shards", "{tmp}"], "{tmp}"),
        (["curves", "{tmp}"], "nothing was logged here; give the output_dir of a run"),
    ],
)
def test_bad_input_is_one_line(arguments, message, exported, whole_run, small_shards, tmp_path, capsys):
    latin1 = tmp_path / "latin1.txt"
    latin1.write_bytes(b"fine\nna\xefve\n")
    places = {
        "tmp": tmp_path,
        "model": exported,
        "run": whole_run.output,
        "shards": small_shards,
        "latin1": latin1,
    }
    before = sorted(tmp_path.rglob("*"))
    assert main([argument.format(**places) for argument in arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("bnb-ds: error: ")
    assert message.format(**places) in error
    assert "\n" not in error
    assert sorted(tmp_path.rglob("*")) == before, "something half-written was left"
