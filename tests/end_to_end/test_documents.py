"""Execute every command in README.md and docs/, in the checkout. Commands for larger machines are only planned.

`test_newcomers.py` executes those of docs/first_steps.md, from a wheel.
"""

from __future__ import annotations

import contextlib
import html
import importlib.util
import itertools
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch
from deepspeed.launcher.runner import parse_args
from safetensors.torch import load_file
from transformers import BertConfig, BertForPreTraining

from bnb_ds.data.tokenization import load_tokenizer
from tests import documents, launching
from tests.documents import commands
from tests.exports import save_model
from tests.hub import TOKEN, Hub
from tests.reference_files import save_as_reference
from tests.tiny import bnb_model

pytestmark = pytest.mark.slow

BLOCKS = documents.named_blocks()
#: scripts that are executed elsewhere: by test_quickstart.py, by the person who runs the tests, by test_gpu_check.py
SCRIPTS = ["bash runs/quickstart.sh\n", "bash runs/test.sh\n", "bash runs/gpu_check.sh\n"]
TINY_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
}
DATASET = "--dataset wikimedia/wikipedia --config 20231101.en"
RECIPE = "runs/recipes/pretrain/wikipedia_base.yaml"
#: language and first words of two blocks of docs/own_data.md
_REVIEWS = (("csv", "review,verdict"), ("yaml", "# work/reviews.yaml"))
SETTINGS = ["data.max_length=32", "intervals.eval_samples=8", "intervals.checkpoint_steps=2"]


def python(name: str, folder: Path) -> None:
    """Execute the Python block below `<!-- test: name -->`, with `work/` replaced by another folder."""
    exec(compile(moved(BLOCKS[name], folder), name, "exec"), {})


def moved(text: str, folder) -> str:
    """Replace the documents' relative `work/`. Longer paths that contain a folder of this name stay as they are."""
    return re.sub(r"(?<![\w./-])work/", f"{folder}/", text)


def run(command: str, folder) -> str:
    """Run one command with `work/` replaced by a folder of the test; return its output."""
    result = launching.run(["bash", "-c", moved(command, folder)])
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture
def forked(fork_server, tmp_path):
    """Like ``run``, for a Python program. It runs from a fork server, which saves the seconds for the imports."""
    numbers = itertools.count()

    def run_forked(command: str, folder) -> str:
        program, *arguments = shlex.split(moved(command, folder))
        if program in ("python", sys.executable):
            folder_of_program, _, program = arguments.pop(0).rpartition("/")
            assert folder_of_program == "runs"
        else:
            assert program == "bnb-ds"
        code, text = fork_server.run(program, arguments, tmp_path / f"{next(numbers)}.log")
        assert code == 0, text
        return text

    return run_forked


def test_no_block_is_left_out():
    """Each block has a name that a test here or from a wheel uses, or starts a script that has its own test."""
    scripts = []
    for page in documents.PAGES:
        for name, language, content in documents.blocks(page):
            if language in ("bash", "python") and name is None:
                scripts.append(content)
    assert scripts == SCRIPTS
    tests = [Path(__file__), Path(__file__).with_name("test_newcomers.py")]
    used = [name for test in tests for name in re.findall(r"(?:commands|python)\(\"(\w+)\"", test.read_text())]
    assert set(used) == set(BLOCKS)


def test_scaling_plan(forked):
    (command,) = commands("scaling_plan")
    assert "| 128 < | 10 x 1 |" in forked(command, "work")


def save_bert(directory: Path, tokenizer) -> None:
    """A BERT checkpoint to start from."""
    tokenizer.save_pretrained(directory)
    BertForPreTraining(BertConfig(vocab_size=len(tokenizer), **TINY_BERT)).save_pretrained(directory)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, small_texts, small_tokenizer):
    """The folder that replaces `work/`, after the block `prepare`; it also holds a BERT checkpoint to start from."""
    folder = tmp_path_factory.mktemp("documents")
    # By default one document in a hundred is held out. There are enough documents to get at least one.
    (folder / "corpus.txt").write_text("\n\n".join(text[i:] for text in small_texts for i in (0, 50, 100)))
    save_bert(folder / "bert", small_tokenizer)
    (command,) = commands("prepare")
    run(command.replace("CORPUS", f"{folder}/corpus.txt").replace("TOKENIZER", f"{folder}/bert"), folder)
    return folder


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


@pytest.mark.parametrize("command", commands("clusters"), ids=["hostfile", "torchrun", "slurm"])
def test_clusters(prepared, command):
    """Launch one rank on this host. `test_launchers.py` launches two, and executes the Slurm script."""
    if command.startswith("sbatch"):
        script = shlex.split(command)[3]
        assert (launching.REPOSITORY / script).is_file()
        return
    here = {
        "--hostfile HOSTFILE --num_nodes 16 --num_gpus 8": f"--num_gpus 1 --master_port {launching.free_port()}",
        "--nodes 16 --gpus 8 --master HOST": f"--gpus 1 --master 127.0.0.1:{launching.free_port()}",
        "ds_configs/v100_fp16_zero1.json": "ds_configs/cpu_debug.json",
        "runs/launch/hostfile.sh": f"runs/launch/hostfile.sh --logs {prepared}/hostfile",
        "runs/launch/torchrun.sh": f"runs/launch/torchrun.sh --logs {prepared}/torchrun",
    }
    for old, new in here.items():
        command = command.replace(old, new)
    name = "hostfile" if "hostfile.sh" in command else "torchrun"
    settings = f"{overrides(prepared)} output_dir={prepared}/runs/{name} steps=2"
    assert "done         step 2 of 2" in run(f"{command} {settings}", prepared)


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
    assert re.search(r"train/loss +[\d.]+ at step 3", run(curves, prepared))
    assert "step_00000003" in run(export, prepared)
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
    glue = glue.replace("glue/*.yaml", "glue/sst2.yaml").replace("--seeds 1 2 3 4 5", "--seeds 1")
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
    page = documents.text("docs/own_data.md")
    rows, recipe = (re.search(rf"```{kind}\n({start}.*?)```", page, re.DOTALL)[1] for kind, start in _REVIEWS)
    (prepared / "data").mkdir()
    (prepared / "data" / "reviews.csv").write_text(rows)
    (prepared / "reviews.yaml").write_text(moved(recipe, prepared))
    settings = f"data.cache_dir={prepared}/cache model.encoder={prepared}/bert"
    check, launch, evaluate, predict = commands("own_data")
    assert "check: no errors" in forked(f"{check} {settings}", prepared)
    script = f"{sys.executable} runs/finetune.py{moved(launch, prepared).partition('runs/finetune.py')[2]}"
    forked(f"{script} {settings}", prepared)
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
