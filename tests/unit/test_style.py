from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff(command):
    result = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


#: files that may open files for writing or rename them, and why; all others use `bnb_ds/common/files.py`
WRITERS = {
    "bnb_ds/common/files.py": "the writer",
    "bnb_ds/common/line_outputs.py": "appends to an output that can be resumed",
    "bnb_ds/checkpoint/resume.py": "checkpoints",
    "bnb_ds/checkpoint/run_dir.py": "appends to the list of launches",
    "bnb_ds/checkpoint/run_lock.py": "locks",
    "bnb_ds/checkpoint/store.py": "checkpoints",
    "bnb_ds/distributed/ranks.py": "tries out whether ranks share a file system",
    "bnb_ds/bench/gpu_check/figures.py": "appends figures of several processes",
    "bnb_ds/train/step.py": "the samples of a bad step",
    "bnb_ds/tune/trial_run.py": "appends to the log of a trial",
    "bnb_ds/train/tracking.py": "appends to the log",
    "bnb_ds/shards/npy_files.py": "shards",
    "bnb_ds/shards/writer.py": "shards",
    "data_prep/jobs/index.py": "through the workspace",
    "data_prep/jobs/merge.py": "shards",
    "data_prep/jobs/worker.py": "through the workspace",
    "data_prep/jobs/workspace.py": "markers of parts",
    # inside `new_directory`, or in a temporary directory
    "bnb_ds/bench/deepspeed_share.py": "temporary",
    "bnb_ds/bench/serve.py": "temporary",
    "bnb_ds/bench/synthetic.py": "temporary",
    "bnb_ds/evaluate/predict.py": "temporary",
    "bnb_ds/export/finetuned.py": "new_directory",
    "bnb_ds/export/onnx.py": "new_directory",
    "bnb_ds/export/pretrained.py": "new_directory",
    "bnb_ds/export/publish.py": "temporary",
    "bnb_ds/tasks/tokenised.py": "new_directory",
}
_WRITING = {"write_text", "write_bytes", "savetxt", "to_csv", "to_json", "to_parquet"}


def _writes(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("replace", "rename", "renames", "move", "copyfile", "copy", "copytree"):
        return isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") in ("os", "shutil")
    modes = [*call.args[:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    opens = name == "open" and any(
        isinstance(mode, ast.Constant)
        and isinstance(mode.value, str)
        and re.fullmatch("[rbt]*[wax+][bt+]*", mode.value)
        for mode in modes
    )
    return opens or name in _WRITING


def test_files_are_written_in_one_place():
    found = set()
    for package in ("bnb_ds", "data_prep"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
            if any(map(_writes, calls)):
                found.add(path.relative_to(REPOSITORY).as_posix())
    assert found == set(WRITERS)
