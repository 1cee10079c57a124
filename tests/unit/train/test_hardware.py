"""The peak that the model FLOPs utilisation is a share of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bnb_ds.config.deepspeed import load_ds_config
from bnb_ds.errors import ConfigError
from bnb_ds.generate import engines
from bnb_ds.train import hardware
from bnb_ds.train.engine import build_engine
from tests.launching import REPOSITORY


def test_a_cpu_has_no_peak():
    assert hardware.peak_of(torch.device("cpu"), "fp32") is None


@pytest.mark.parametrize(
    ("name", "precision", "flops"),
    [
        ("Tesla V100-SXM2-32GB", "fp16", 125e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA H200", "fp32", 67e12),
        ("NVIDIA A100-PCIE-40GB", "fp16", 312e12),
    ],
)
def test_the_peak_of_a_known_gpu_is_its_data_sheets(monkeypatch, name, precision, flops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert hardware.peak_of(torch.device("cuda"), precision) == (flops, f"{name}, data sheet")


@pytest.mark.parametrize("name", ["NVIDIA H200 NVL", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"])
def test_a_gpu_with_other_clocks_is_measured(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(hardware, "_measure_matmul", lambda device, dtype: 7e12)
    assert hardware.peak_of(torch.device("cuda"), "bf16") == (7e12, "measured with a matrix product")


def test_bf16_on_a_gpu_that_only_emulates_it_is_refused(monkeypatch):
    gpu, path = torch.device("cuda", 0), Path("ds_configs/a100_bf16_zero1.json")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100-SXM2-16GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(ConfigError) as raised:
        build_engine(torch.nn.Linear(1, 1), load_ds_config(REPOSITORY / path, 8), gpu, lambda step: 1.0)
    assert str(raised.value) == (
        f"{REPOSITORY / path}: Tesla V100-SXM2-16GB (capability 7.0) has no bf16, which needs 8.0; use fp16, as in"
        " ds_configs/v100_fp16_zero1.json"
    )
    assert not engines.has_bf16(gpu)
    hardware.refuse_emulation(gpu, "fp16", path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    hardware.refuse_emulation(gpu, "bf16", path)
    hardware.refuse_emulation(torch.device("cpu"), "bf16", path)
