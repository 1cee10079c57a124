"""No function that reads checkpoints runs code that was planted in one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest
import torch

from bnb_ds.checkpoint import store
from bnb_ds.checkpoint.resume import convert
from bnb_ds.checkpoint.weights import read_weights
from bnb_ds.cli import main
from bnb_ds.errors import CheckpointError

pytestmark = pytest.mark.slow


class Plant:
    """Creates a directory when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def planted(whole_run, tmp_path):
    """A run with planted code in every file of every checkpoint. The checksums match the changed files."""
    mark = tmp_path / "planted"
    copy_of_run = shutil.copytree(whole_run.output, tmp_path / "run")
    for checkpoint in store.whole_checkpoints(copy_of_run / "checkpoints"):
        state = store.read_state(checkpoint)
        for path in checkpoint.glob("*.pt"):
            content = torch.load(path, weights_only=False)
            torch.save({**content, "planted": Plant(mark)}, path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            state["files"][path.name] = {"bytes": path.stat().st_size, "sha256": digest}
        (checkpoint / "checkpoint.json").write_text(json.dumps(state))
    return copy_of_run, mark


def test_the_plant_would_run(planted):
    run, mark = planted
    newest = store.whole_checkpoints(run / "checkpoints")[-1]
    torch.load(next(newest.glob("*optim_states.pt")), weights_only=False)
    assert mark.is_dir()


def test_reading_weights_and_converting_run_nothing(planted):
    run, mark = planted
    newest = store.whole_checkpoints(run / "checkpoints")[-1]
    with pytest.raises(CheckpointError, match=r"holds more than tensors and plain data, .*posix\.mkdir.*restore it"):
        read_weights(newest)
    with pytest.raises(CheckpointError, match="DeepSpeed cannot convert it"):
        convert(newest)
    assert not mark.exists()


def test_export_runs_nothing(planted, tmp_path, capsys):
    run, mark = planted
    assert main(["export", str(run), str(tmp_path / "exported")]) == 2
    assert "holds more than tensors and plain data" in capsys.readouterr().err
    assert not mark.exists()
    assert not (tmp_path / "exported").exists()


def test_a_resume_runs_nothing(planted, whole_run, fork_server):
    run, mark = planted
    arguments = [str(whole_run.recipe), "--deepspeed_config", str(whole_run.ds_config), f"output_dir={run}"]
    launch = fork_server.launch([*arguments, "--resume", "auto", "steps=8"], run.parent / "planted.log", ranks=2)
    assert launch.wait() == [2, 2], launch.text()
    assert "holds more than tensors and plain data" in launch.text()
    assert not mark.exists()
