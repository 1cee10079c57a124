"""Peak speed of this rank's GPU, for the model FLOPs utilisation (MFU)."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

# (start of the device's name, precision) -> FLOP/s of dense matrix products, from the vendor's data sheets.
# Variants with other clocks (PCIe, NVL) are not listed; they are measured.
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

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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
    for (start, known_precision), flops in _PEAK_FLOPS.items():
        if name.startswith(start) and precision == known_precision:
            return Peak(flops, f"{name}, data sheet")
    return Peak(_measure_matmul(device, _DTYPES[precision]), "measured with a matrix product")


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
