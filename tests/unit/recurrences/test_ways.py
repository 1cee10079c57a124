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


@pytest.mark.parametrize("given", ["cuda,tritn", "none,cuda", "cuda,", "Triton", "0"])
def test_an_unknown_kind_is_refused(given, monkeypatch):
    monkeypatch.setenv("BNB_KERNELS", given)
    with pytest.raises(ConfigError, match=f"BNB_KERNELS is '{given}': give none, or some of triton,cuda"):
        choose("It", GPU, {"loss": work}, {}, {})


@pytest.mark.parametrize("given", ["", " ", "triton, cuda", None])
def test_all_kinds_are_tried_unless_something_is_said(given, monkeypatch):
    monkeypatch.delenv("BNB_KERNELS", raising=False)
    if given is not None:
        monkeypatch.setenv("BNB_KERNELS", given)
    assert choose("It", GPU, {"loss": work, "path": fail}, {"path": work}, {}).ways == {"loss": TRITON, "path": CUDA}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "triton",
            "Triton's kernel of the loss has made cuda:0 unusable for this process .*broken.*: set BNB_KERNELS=cuda",
        ),
        ("cuda", "the kernel of the loss in CUDA C.. has made cuda:0 unusable .*: set BNB_KERNELS=none"),
    ],
)
def test_a_trial_that_spoils_the_gpu_ends_the_run_with_the_way_out(given, message, monkeypatch):
    synchronized = []

    def synchronize(device):
        synchronized.append(device)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setenv("BNB_KERNELS", given)
    with pytest.raises(ConfigError, match=message):
        choose("It", GPU, {"loss": fail}, {"loss": fail}, {})
    assert synchronized == [GPU]
    monkeypatch.setattr(torch.cuda, "synchronize", synchronized.append)
    assert choose("It", GPU, {"loss": fail}, {"loss": fail}, {}).ways == {"loss": None}


def test_nothing_is_tried_without_a_gpu():
    assert choose("It", torch.device("cpu"), {"loss": fail}, {"loss": fail}, {}) == Choice(
        {"loss": None}, "It in batched PyTorch (cpu)"
    )
