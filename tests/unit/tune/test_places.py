"""Where trials run. A script stands in for the driver's tool, which no machine without a GPU has."""

from __future__ import annotations

import os

import pytest

from bnb_ds.errors import ConfigError
from bnb_ds.tune.places import free_places


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """Give the machine GPUs with so much memory in use, of 1000 MiB."""

    def have(*used: int) -> None:
        lines = "".join(f"{index}, {one}, 1000\n" for index, one in enumerate(used))
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}END\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("DS_ACCELERATOR", raising=False)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return have


def test_one_place_on_each_free_gpu(gpus):
    gpus(5, 900, 0)
    assert free_places() == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "2"}]
    assert free_places(3) == [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("0", "2", "0")]


def test_no_gpu_is_free(gpus):
    gpus(900)
    with pytest.raises(ConfigError, match="no GPU is free; wait, or say with --jobs how many trials shall share them"):
        free_places()
    assert free_places(2) == [{"CUDA_VISIBLE_DEVICES": "0"}] * 2


def test_without_gpus_the_cores_are_shared(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(os, "getloadavg", lambda: (3.2, 0.0, 0.0))
    assert free_places() == [{"OMP_NUM_THREADS": "1"}] * 5
    assert free_places(2) == [{"OMP_NUM_THREADS": "4"}] * 2
    monkeypatch.setattr(os, "getloadavg", lambda: (30.0, 0.0, 0.0))
    assert free_places() == [{"OMP_NUM_THREADS": "8"}]
