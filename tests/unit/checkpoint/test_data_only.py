"""`data_only` holds whatever the environment says, and what it refuses is one line."""

from __future__ import annotations

import os

import pytest
import torch

from bnb_ds.checkpoint.safe_loading import data_only, stages_by_value
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


def test_a_stage_is_written_as_data_by_every_python(tmp_path, monkeypatch):
    """Members of enumerations were pickled as a call of ``getattr`` by Python 3.11.0 to 3.11.3."""
    config = pytest.importorskip("deepspeed.runtime.zero.config", reason="needs DeepSpeed")
    stage = config.ZeroStageEnum.optimizer_states

    def by_name(member, _protocol):
        return getattr, (type(member), member.name)

    monkeypatch.setattr(config.ZeroStageEnum, "__reduce_ex__", by_name, raising=False)
    with stages_by_value():
        torch.save({"zero_stage": stage}, tmp_path / "states.pt")
    assert config.ZeroStageEnum.__reduce_ex__ is by_name
    with data_only(tmp_path):
        assert torch.load(tmp_path / "states.pt", weights_only=False) == {"zero_stage": stage}
