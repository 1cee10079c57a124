"""`data_only` holds whatever the environment says, and what it refuses is one line."""

from __future__ import annotations

import os

import pytest
import torch

from bnb_ds.checkpoint.safe_loading import data_only
from bnb_ds.errors import CheckpointError


class Plant:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("value", ["1", "true", None])
def test_an_environment_that_asks_for_full_pickles_is_not_heard(tmp_path, monkeypatch, value):
    """Many set this variable for other programs."""
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    if value is not None:
        monkeypatch.setenv(name, value)
    torch.save({"module": torch.ones(2)}, tmp_path / "good.pt")
    torch.save({"module": Plant(tmp_path / "mark")}, tmp_path / "bad.pt")
    with data_only(tmp_path):
        assert torch.load(tmp_path / "good.pt", weights_only=False)["module"].sum() == 2
    with pytest.raises(CheckpointError, match="holds more than tensors and plain data"), data_only(tmp_path):
        torch.load(tmp_path / "bad.pt", weights_only=False)
    assert not (tmp_path / "mark").exists()
    assert os.environ.get(name) == value
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.filterwarnings("ignore:.*TorchScript")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_in_the_place_of_weights_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(tmp_path / "program.pt"))
    with (
        pytest.raises(CheckpointError, match=r"holds more than tensors .*TorchScript.*restore it"),
        data_only(tmp_path),
    ):
        torch.load(tmp_path / "program.pt", weights_only=False)
