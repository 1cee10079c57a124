"""Execute every command in README.md and docs/, in the checkout. Commands for larger machines are only planned.

`test_newcomers.py` executes those of docs/first_steps.md, from a wheel, and `test_launchers.py` those that launch on
clusters.
"""

from __future__ import annotations

import html
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch
from deepspeed.launcher.runner import parse_args
from safetensors.torch import load_file

from bnb_ds.data.tokenization import load_tokenizer
from tests import documents
from tests.documents import commands
from tests.executing_documents import moved, python, run, save_bert
from tests.exports import save_model
from tests.hub import TOKEN, Hub
from tests.reference_files import save_as_reference
from tests.tiny import bnb_model

pytestmark = pytest.mark.slow

BLOCKS = documents.named_blocks()
#: scripts that are executed elsewhere: by test_quickstart.py, by the person who runs the tests, by test_gpu_check.py
SCRIPTS = ["bash runs/quickstart.sh\n", "bash runs/test.sh\n", "bash runs/gpu_check.sh\n"]
DATASET = "--dataset wikimedia/wikipedia --config 20231101.en"
RECIPE = "runs/recipes/pretrain/wikipedia_base.yaml"
SETTINGS = ["data.max_length=32", "intervals.eval_samples=8", "intervals.checkpoint_steps=2"]


def test_no_block_is_left_out():
    """Each block has a name that a test here or from a wheel uses, or starts a script that has its own test."""
    scripts = []
    for page in documents.PAGES:
        for name, language, content in documents.blocks(page):
            if language in ("bash", "python") and name is None:
                scripts.append(content)
    assert scripts == SCRIPTS
    names = ("documents", "finetuning_documents", "launchers", "newcomers")
    tests = [Path(__file__).with_name(f"test_{name}.py") for name in names] + [Path(__file__).with_name("conftest.py")]
    used = [name for test in tests for name in re.findall(r"(?:commands|python)\(\"(\w+)\"", test.read_text())]
    assert set(used) == set(BLOCKS)


def test_scaling_plan(forked):
    (command,) = commands("scaling_plan")
    assert "| 128 < | 10 x 1 |" in forked(command, "work")


def write_rows(directory: Path, texts: list[str]) -> None:
    """A local data set."""
    directory.mkdir()
    rows = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
    (directory / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_corpora(prepared, small_texts, forked):
    """Run the commands on small inputs of the same form. A local data set replaces the one on the hub."""
    write_rows(prepared / "rows", small_texts)
    page = "<page><title>T</title><ns>0</ns><id>{}</id><revision><text>{}</text></revision></page>"
    pages = "".join(page.format(i, html.escape(text)) for i, text in enumerate(small_texts))
    (prepared / "dump.xml").write_text(f"<mediawiki>{pages}</mediawiki>")
    abstract = '{{"pmid": {}, "title": "T", "abstract": {}}}\n'
    (prepared / "pubmed.jsonl").write_text(
        "".join(abstract.format(i + 1, json.dumps(text)) for i, text in enumerate(small_texts))
    )
    places = {
        DATASET: f"--dataset {prepared}/rows",
        "enwiki-pages-articles-multistream.xml.bz2": f"{prepared}/dump.xml",
        "baseline updatefiles": f"{prepared}/pubmed.jsonl",
        "TOKENIZER": f"{prepared}/bert",
        "--workers 32": "--workers 2",
    }
    for command in commands("corpora"):
        for old, new in places.items():
            command = command.replace(old, new)
        assert forked(command, prepared)


def overrides(folder) -> str:
    places = [f"model.encoder={folder}/bert", f"data.shards={folder}/shards/wikipedia"]
    return shlex.join([*places, f"output_dir={folder}/runs/wikipedia_base", *SETTINGS])


def test_plan(prepared, forked):
    check, plan = commands("plan")
    checked = forked(check.replace(RECIPE, f"{RECIPE} {overrides(prepared)}"), prepared)
    for shown in (checked, forked(f"{plan} {overrides(prepared)}", prepared)):
        assert "1280 samples = 10 x 1 micro steps x 128 ranks" in shown
        assert "memory/GPU   about" in shown


@pytest.mark.parametrize("command", commands("launch"), ids=["one node", "sixteen nodes"])
def test_launch(prepared, command, forked):
    assert planned_launch(command, prepared, forked)


def planned_launch(command: str, folder: Path, forked) -> str:
    """Parse the launcher's options with DeepSpeed's parser, and plan for that many GPUs; returns the plan."""
    program, *arguments = shlex.split(command)
    launch = parse_args(arguments)
    assert program == "deepspeed"
    ranks = max(launch.num_nodes, 1) * launch.num_gpus
    script = [launch.user_script, *launch.user_args]
    planned = f"{sys.executable} {shlex.join(script)} --dry-run --world-size {ranks} {overrides(folder)}"
    plan = forked(planned, folder)
    assert f" micro steps x {ranks} ranks" in plan
    return plan


def train(folder: Path, forked) -> None:
    """Train three steps of the recipe on one rank, instead of on eight GPUs."""
    ds_config = folder / "ds.json"
    optimizer = {"type": "AdamW", "params": {"lr": 1e-3}}
    ds_config.write_text(
        json.dumps({"train_batch_size": 4, "train_micro_batch_size_per_gpu": 4, "optimizer": optimizer})
    )
    settings = f"{overrides(folder)} epochs=null steps=3"
    forked(f"{sys.executable} runs/pretrain.py {RECIPE} --deepspeed_config {ds_config} {settings}", folder)


def test_real_run(tmp_path, small_texts, small_tokenizer, forked):
    """A run like the one in README.md, on small inputs of the same form."""
    prepare, check, pretrain, export, generate = commands("real_run")
    write_rows(tmp_path / "rows", small_texts)
    save_bert(tmp_path / "bert", small_tokenizer)
    (tmp_path / "lines.txt").write_text("\n".join(text[:40] for text in small_texts[:20]) + "\n")
    small = prepare.replace(DATASET, f"--dataset {tmp_path}/rows").replace("TOKENIZER", f"{tmp_path}/bert")
    forked(f"{small.replace('--workers 32', '--workers 2')} --holdout 0.1", tmp_path)
    assert "check: no errors" in forked(check.replace(RECIPE, f"{RECIPE} {overrides(tmp_path)}"), tmp_path)
    planned_launch(pretrain, tmp_path, forked)
    train(tmp_path, forked)
    forked(export, tmp_path)
    forked(generate.replace("LINES", f"{tmp_path}/lines.txt"), tmp_path)
    assert (tmp_path / "outputs.txt").read_text().count("\n") == 20


def test_use(prepared, capsys, forked):
    train(prepared, forked)
    watch, curves, export, generate = commands("use")
    assert "train/loss" in run(f"{watch} --inspect", prepared)
    assert re.search(r"train/loss +[\d.]+ at step 3", forked(curves, prepared))
    assert "step_00000003" in forked(export, prepared)
    assert run(generate, prepared).count("\n") >= 1
    python("transformers", prepared)
    assert capsys.readouterr().out.startswith("['")
    python("pipeline", prepared)
    assert len(capsys.readouterr().out.splitlines()) == 3
    (prepared / "models" / "bert").symlink_to(prepared / "bert")
    python("classes", prepared)
    convert, encoder = commands("models")
    forked(encoder, prepared)
    assert (prepared / "models" / "encoder" / "model.safetensors").is_file()
    assert "pooler.dense.weight" in load_file(prepared / "models" / "encoder" / "model.safetensors"), "that of its BERT"
    save_as_reference(bnb_model(dtype=torch.float32), prepared / "reference")
    assert "import-reference: " in forked(convert.replace("REFERENCE", f"{prepared}/reference"), prepared)


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs accelerate, of the extra `test`")
def test_the_trainer_of_transformers(small_tokenizer, tmp_path, capsys):
    save_model(tmp_path / "models" / "wikipedia_base", small_tokenizer)
    python("trainer", tmp_path)
    assert float(capsys.readouterr().out.splitlines()[-1]) > 0


def test_push(small_tokenizer, tmp_path):
    save_model(tmp_path / "models" / "xsum", small_tokenizer)
    hub = Hub()
    settings = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    (command,) = commands("push")
    said = run(f"env {shlex.join(f'{name}={value}' for name, value in settings.items())} {command}", tmp_path)
    hub.close()
    assert f"-> {hub.address}/OWNER/bnb-xsum/commit/" in said
    assert "model.safetensors" in hub.repositories["OWNER/bnb-xsum"].files


def test_shards_in_python(prepared, capsys):
    python("shards", prepared)
    assert re.match(r"\d+ documents, \d+ tokens\nthe first begins with \[", capsys.readouterr().out)


@pytest.fixture
def exported(prepared):
    """The model that the block `use` exports, or a random one if only this test runs."""
    directory = prepared / "models" / "wikipedia_base"
    if not directory.exists():
        save_model(directory, load_tokenizer(prepared / "bert"))
    return directory


def test_serve(prepared, exported):
    (command,) = commands("serve")
    command = moved(command, prepared).replace("--port 8000", "--port 0")
    process = subprocess.Popen(shlex.split(command), stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://[\d.:]+", process.stderr.readline())[0]
        answer = httpx.post(f"{address}/generate", json={"texts": ["Paris is the [MASK] of France ."]}, timeout=60)
        assert answer.json()["outputs"][0]["num_source_tokens"] > 2
        (command,) = commands("curl")
        if shutil.which("curl"):
            command = shlex.split(command.replace("http://127.0.0.1:8000", address))
            said = subprocess.run([*command, "-sS"], capture_output=True, text=True, check=True).stdout
            assert json.loads(said)["outputs"][0]["num_source_tokens"] > 2
    finally:
        process.terminate()
        number = 2 if shutil.which("curl") else 1
        assert f"{number} requests accepted, {number} answered" in process.communicate()[1]


def test_generate(prepared, exported, small_texts, forked):
    (prepared / "lines.txt").write_text("\n".join(text[:40] for text in small_texts[:20]) + "\n")
    for command in commands("generate"):
        forked(command.replace("LINES", f"{prepared}/lines.txt"), prepared)
    outputs = [(prepared / f"{name}.txt").read_text() for name in ("outputs", "half", "beam", "onnx")]
    assert all(output.count("\n") == 20 for output in outputs)
    assert outputs[0] == outputs[3]
