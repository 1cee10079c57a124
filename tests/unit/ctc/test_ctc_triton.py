"""The Triton kernels without a GPU: run by Triton's interpreter, and compiled by Triton's own compiler."""

from __future__ import annotations

import sys

import pytest
import torch

from bnb_ds.ctc import kernels as ctc_kernels
from tests import launching

KERNELS = {
    # Names and types of the arguments, then the constants of compile time.
    "forward_kernel": (
        {
            "emissions": "*fp32",
            "may_skip": "*i8",
            "start": "*i64",
            "blanks": "*fp32",
            "tokens": "*fp32",
            "num_steps": "i32",
            "num_rows": "i32",
            "num_tokens": "i32",
            "LANES": "constexpr",
        },
        {"LANES": 1024},
    ),
    "softmax_kernel": (
        {
            "logits": "*fp32",
            "own": "*fp32",
            "scale": "*fp32",
            "scaled": "*bf16",
            "normalizer": "*fp32",
            "rival": "*i64",
            "strength": "*fp32",
            "vocab_size": "i32",
            "BLOCK": "constexpr",
        },
        {"BLOCK": 4096},
    ),
}


@pytest.fixture(scope="module")
def triton():
    return pytest.importorskip("triton", reason="triton is not installed (torch brings it on CUDA builds only)")


def test_kernels_in_the_interpreter(triton):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/interpreted/ctc_kernels.py"]
    result = launching.run(command, env=launching.environment(TRITON_INTERPRET="1"))
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile(triton, name, capability):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from bnb_ds.ctc import triton as ctc_triton

    signature, constants = KERNELS[name]
    source = ASTSource(getattr(ctc_triton, name), signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    assert f".target sm_{capability}" in compiled.asm["ptx"]
    assert compiled.asm["cubin"]
    if name == "forward_kernel":
        # Lanes of different warps exchange values. The interpreter is serial, so it cannot show races between them.
        assert "bar.sync" in compiled.asm["ptx"] or "barrier.sync" in compiled.asm["ptx"]


class Gpu:
    """Pretend that there is a GPU, to test only the choice of kernels."""

    def __init__(self, monkeypatch, name: str, capability: tuple[int, int], has_triton: bool) -> None:
        monkeypatch.setattr("torch.cuda.get_device_name", lambda device: name)
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if has_triton else None)


@pytest.mark.parametrize(
    ("gpu", "chosen", "text"),
    [
        (("Tesla V100", (7, 0), True), False, "CTC in batched PyTorch (Tesla V100: capability 7.0, below 8.0)"),
        (("A100", (8, 0), True), True, "CTC in Triton kernels (A100: capability 8.0)"),
        (("H200", (9, 0), True), True, "CTC in Triton kernels (H200: capability 9.0)"),
        (("A100", (8, 0), False), False, "CTC in batched PyTorch (A100: triton is not installed)"),
    ],
)
def test_the_choice_is_made_by_capability_once_and_said(gpu, chosen, text, monkeypatch, caplog):
    Gpu(monkeypatch, *gpu)
    ctc_kernels._choose.cache_clear()
    caplog.set_level("INFO")
    device = torch.device("cuda", 0)
    try:
        assert [ctc_kernels.uses_triton(device) for _ in range(3)] == [chosen] * 3
        assert ctc_kernels.description(device) == text
    finally:
        ctc_kernels._choose.cache_clear()
    assert caplog.messages == [text]


def test_a_cpu_takes_pytorch():
    assert not ctc_kernels.uses_triton(torch.device("cpu"))
    assert ctc_kernels.description(torch.device("cpu")) == "CTC in batched PyTorch (cpu)"
