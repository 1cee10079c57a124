"""The peak that the model FLOPs utilisation is a share of."""

from __future__ import annotations

import pytest
import torch

from bnb_ds.train import hardware


def test_a_cpu_has_no_peak():
    assert hardware.peak_of(torch.device("cpu"), "fp32") is None


@pytest.mark.parametrize(
    ("name", "precision", "flops"),
    [
        ("Tesla V100-SXM2-32GB", "fp16", 125e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA H200", "fp32", 67e12),
    ],
)
def test_the_peak_of_a_known_gpu_is_its_data_sheets(monkeypatch, name, precision, flops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert hardware.peak_of(torch.device("cuda"), precision) == (flops, f"{name}, data sheet")
