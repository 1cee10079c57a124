"""Which kinds of kernels are tried, and what is said about it."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from bnb_ds.errors import ConfigError
from bnb_ds.recurrences.ways import CUDA, TRITON, Choice, choose

GPU = torch.device("cuda", 0)


def fail(device):
    raise RuntimeError("broken")


def work(device):
    assert device == GPU


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "a GPU")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__="3.9"))


@pytest.mark.parametrize(
    ("given", "ways", "reasons"),
    [
        (
            "triton,cuda",
            {"loss": TRITON, "path": CUDA, "softmax": None},
            "path, softmax: Triton 3.9: RuntimeError: broken",
        ),
        ("cuda", {"loss": None, "path": CUDA, "softmax": None}, "loss, path, softmax: BNB_KERNELS leaves out Triton"),
        (
            "triton",
            {"loss": TRITON, "path": None, "softmax": None},
            "path, softmax: Triton 3.9: RuntimeError: broken; path: BNB_KERNELS leaves out CUDA C++",
        ),
        (
            "none",
            {"loss": None, "path": None, "softmax": None},
            "loss, path, softmax: BNB_KERNELS leaves out Triton; path: BNB_KERNELS leaves out CUDA C++",
        ),
    ],
)
def test_kinds_of_kernels_can_be_left_out(given, ways, reasons, monkeypatch):
    monkeypatch.setenv("BNB_KERNELS", given)
    in_triton = {"loss": work, "path": fail, "softmax": fail}
    choice = choose("It", GPU, in_triton, {"path": work}, {"softmax": "in batched PyTorch"})
    assert choice.ways == ways
    how = {TRITON: None, CUDA: "in CUDA C++", None: "on the host"}
    instead = [f"{name} {how[way]}" for name, way in ways.items() if how[way]]
    said = ", ".join(instead).replace("softmax on the host", "softmax in batched PyTorch")
    part = "partly" if TRITON in ways.values() else "not"
    assert choice.text == f"It {part} in Triton kernels: {said} (a GPU: capability 8.0; {reasons})"


def test_an_unknown_kind_is_refused(monkeypatch):
    monkeypatch.setenv("BNB_KERNELS", "cuda,tritn")
    with pytest.raises(ConfigError, match="BNB_KERNELS is 'cuda,tritn': give none, or some of triton,cuda"):
        choose("It", GPU, {"loss": work}, {}, {})


def test_nothing_is_tried_without_a_gpu():
    assert choose("It", torch.device("cpu"), {"loss": fail}, {"loss": fail}, {}) == Choice(
        {"loss": None}, "It in batched PyTorch (cpu)"
    )
