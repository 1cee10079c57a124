"""Peak speed of this rank's GPU, for the model FLOPs utilisation (MFU)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import torch

from bnb_ds.errors import ConfigError

# (start of the device's name, precision) -> FLOP/s of dense matrix products, from the vendor's data sheets.
# Variants with other clocks (H100 PCIe, NVL) and parts of a GPU (MIG) are not listed; they are measured.
_PEAK_FLOPS = {
    ("Tesla V100-SXM2", "fp16"): 125e12,
    ("Tesla V100-SXM2", "fp32"): 15.7e12,
    ("NVIDIA A100", "fp16"): 312e12,
    ("NVIDIA A100", "bf16"): 312e12,
    ("NVIDIA A100", "fp32"): 19.5e12,
    ("NVIDIA H100 80GB HBM3", "fp16"): 989e12,
    ("NVIDIA H100 80GB HBM3", "bf16"): 989e12,
    ("NVIDIA H100 80GB HBM3", "fp32"): 67e12,
    ("NVIDIA H200", "fp16"): 989e12,
    ("NVIDIA H200", "bf16"): 989e12,
    ("NVIDIA H200", "fp32"): 67e12,
}

_OTHER_CLOCKS = (" NVL", " MIG ")

#: a precision of the DeepSpeed JSON -> the dtype of matrix products
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Peak(NamedTuple):
    """The highest speed of matrix products.

    Attributes:
        flops: FLOP/s.
        source: where this number comes from.
    """

    flops: float
    source: str


def peak_of(device: torch.device, precision: str) -> Peak | None:
    """The peak of a GPU: its data sheet's if it is known, else measured with large matrix products.

    A CPU has none: other ranks share its cores and its clock, so a share of its speed would say nothing.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    flops = data_sheet_flops(name, precision)
    if flops is not None:
        return Peak(flops, f"{name}, data sheet")
    return Peak(_measure_matmul(device, DTYPES[precision]), "measured with a matrix product")


def data_sheet_flops(name: str, precision: str) -> float | None:
    """FLOP/s of dense matrix products of a GPU by the name that torch gives it; None if it is not known."""
    for (start, known_precision), flops in _PEAK_FLOPS.items():
        if name.startswith(start) and precision == known_precision and not any(x in name for x in _OTHER_CLOCKS):
            return flops
    return None


def refuse_emulation(device: torch.device, precision: str, path: Path) -> None:
    """Refuse a precision that a GPU has no instructions for. torch emulates bf16 there, many times slower than fp16.

    Args:
        device: of this rank.
        precision: of the DeepSpeed JSON.
        path: of that file.

    Raises:
        ConfigError: bf16 on a GPU of a capability below 8.0, such as a V100.
    """
    if device.type != "cuda" or precision != "bf16" or has_bf16(device):
        return
    major, minor = torch.cuda.get_device_capability(device)
    raise ConfigError(
        f"{path}: {torch.cuda.get_device_name(device)} (capability {major}.{minor}) has no bf16, which needs 8.0; use"
        " fp16, as in ds_configs/v100_fp16_zero1.json"
    )


def has_bf16(device: torch.device) -> bool:
    """Whether a GPU has bf16 instructions. `torch.cuda.is_bf16_supported` also counts emulation."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _measure_matmul(device: torch.device, dtype: torch.dtype) -> float:
    # Small or few products between two synchronisations would measure the kernel launches instead.
    size, products, repeats = 8192, 20, 3
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    left @ right  # the first product is slower, because it also selects a kernel
    best_seconds = float("inf")
    for _ in range(repeats):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(products):
            left @ right
        torch.cuda.synchronize(device)
        best_seconds = min(best_seconds, time.perf_counter() - start)
    return products * 2 * size**3 / best_seconds
