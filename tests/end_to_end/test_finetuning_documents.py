"""Execute the commands of fine-tuning, tuning and baselines in docs/; `test_documents.py` executes the others."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import socket
import sys

import pytest

from tests import documents
from tests.documents import commands
from tests.executing_documents import moved, python

pytestmark = pytest.mark.slow

BLOCKS = documents.named_blocks()


def test_finetune(prepared, forked):
    """Train two steps on 64 rows with two labels, and plan the launch on eight GPUs."""
    rows = [{"sentence": f"a {'good' if i % 2 else 'bad'} film {i}", "label": i % 2, "idx": i} for i in range(64)]
    data = prepared / "films.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [f"data.train={data}", f"data.validation={data}", f"data.cache_dir={prepared}/cache"]
    settings += [f"model.encoder={prepared}/bert", "model.checkpoint=null", "data.max_source_length=32"]
    launch, evaluate, select, compare, glue = commands("finetune")
    script = f"{sys.executable} runs/finetune.py{moved(launch, prepared).partition('runs/finetune.py')[2]}"
    planned = forked(f"{script} {shlex.join(settings)} --dry-run --world-size 8", prepared)
    assert "batch        32 samples = micro batches of at most 4,096 tokens on 8 ranks" in planned
    for name in ("sst2", "sst2-other"):
        settings_of_run = [*settings, f"output_dir={prepared}/runs/glue/{name}", "steps=2"]
        forked(f"{script} {shlex.join(settings_of_run)}", prepared)
    assert "accuracy" in forked(evaluate, prepared)
    assert "best: " in forked(select, prepared)
    assert "accuracy: " in forked(compare, prepared)
    sets = " ".join(f"--set {shlex.quote(setting)}" for setting in [*settings, "steps=2"])
    glue = glue.replace("glue/*.yaml", "glue/sst2.yaml").replace("--seeds 1 2 3 4 5", "--seeds 1 --num-gpus 2")
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # or something of this host has it already
            taken.bind(("", 29500))  # the launcher's own port, as another sweep would take it
            taken.listen()
        assert "| SST-2 | accuracy |" in forked(f"{glue} {sets}", prepared)
    assert (prepared / "runs" / "glue-table" / "glue.md").is_file()


def test_tune(prepared, forked, tmp_path, capsys):
    """The documents' callback in a small search, which makes one trial."""
    pytest.importorskip("optuna", reason='needs optuna (`pip install ".[tune]"` in the checkout)')
    (tmp_path / "space.yaml").write_text("deepspeed: {optimizer.params.lr: [1e-5]}\n")
    (tmp_path / "notify.py").write_text(BLOCKS["callback"])
    rows = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "label": i % 2, "idx": i} for i in range(32)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [f"data.train={data}", f"data.validation={data}", f"data.cache_dir={tmp_path}", "steps=2"]
    settings += [f"model.encoder={prepared}/bert", "model.checkpoint=null", "data.max_source_length=32"]
    settings += [f"tracking.loggers=[{tmp_path}/notify.py:Notify]"]
    tune, glue = commands("tune")
    tune = tune.replace("SPACE", f"{tmp_path}/space.yaml").replace("--trials 20", "--trials 1")
    assert "best: trial 0000, eval/accuracy 50" in forked(f"{tune} {shlex.join(settings)}", prepared)
    said = (prepared / "tune" / "rte" / "trials" / "0000.log").read_text()
    assert re.search(r"0000: \d\.\d{3} at step 2\n", said)
    assert "0000: done\n" in said
    python("callback", prepared)
    glue = glue.replace("2e-5 3e-5 4e-5 5e-5", "2e-5").replace("--seeds 1 2 3", "--seeds 1")
    sets = " ".join(f"--set {shlex.quote(setting)}" for setting in settings)
    assert "chosen on validation among 2e-05: RTE 2e-05." in forked(f"{glue} {sets}", prepared)


def test_own_data(prepared, forked):
    """Train three steps on the rows of the page, and write labels for them."""
    rows, recipe = documents.reviews()
    (prepared / "data").mkdir()
    (prepared / "data" / "reviews.csv").write_text(rows)
    (prepared / "reviews.yaml").write_text(moved(recipe, prepared))
    settings = f"data.cache_dir={prepared}/cache model.encoder={prepared}/bert"
    check, launch, evaluate, predict = commands("own_data")
    assert "check: no errors" in forked(f"{check} {settings}", prepared)
    arguments = moved(launch, prepared).partition('"$(bnb-ds path finetune)"')[2]
    forked(f"{sys.executable} runs/finetune.py{arguments} {settings}", prepared)
    assert "accuracy" in forked(evaluate, prepared)
    forked(predict, prepared)
    said = [json.loads(line)["label"] for line in (prepared / "predicted.jsonl").read_text().splitlines()]
    assert len(said) == 6
    assert set(said) <= {"bad", "good"}


def test_baselines(prepared, forked):
    """Train a small Transformer for two steps on a few pairs, and plan the launch on eight GPUs."""
    for name in ("source", "target"):
        lines = "".join(f"the {name} of the value {i}\n" for i in range(64))
        (prepared / f"{name}.txt").write_text(lines)
    pair = f"{{source: {prepared}/source.txt, target: {prepared}/target.txt}}"
    size = "{hidden_size: 32, encoder_layers: 1, decoder_layers: 1, num_attention_heads: 2, intermediate_size: 32}"
    settings = [f"data.train={pair}", f"data.validation={pair}", f"data.cache_dir={prepared}/cache"]
    settings += [f"data.tokenizer={prepared}/bert", f"model.size={size}"]
    launch, evaluate, distill, listed = commands("baselines")
    script = f"{sys.executable} runs/finetune.py{moved(launch, prepared).partition('runs/finetune.py')[2]}"
    settings += ["task=translation", f"output_dir={prepared}/runs/wmt_transformer"]
    planned = forked(f"{script} {shlex.join(settings)} --dry-run --world-size 8", prepared)
    assert "model kind transformer" in planned
    small = script.replace("finetune_bf16", "finetune_small")
    forked(f"{small} {shlex.join([*settings, 'steps=2'])}", prepared)
    assert "bleu" in forked(evaluate, prepared)
    assert "distill: 64 examples" in forked(distill, prepared)
    assert "WMT16 en-ro, Transformer" in forked(listed, prepared)
