"""Peak speed of this rank's device, for the model FLOPs utilisation (MFU)."""

from __future__ import annotations

import time

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


def peak_flops(device: torch.device, precision: str) -> tuple[float, str]:
    """The highest speed of matrix products in FLOP/s, and the source of this number.

    For a known GPU this is the data-sheet value. Any other device is measured with large matrix products. So on a CPU,
    the MFU is relative to the speed of this machine's own matrix product.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for (start, known_precision), flops in _PEAK_FLOPS.items():
            if name.startswith(start) and precision == known_precision:
                return flops, f"{name}, data sheet"
    return _measure_matmul(device, _DTYPES[precision]), "measured with a matrix product"


def _measure_matmul(device: torch.device, dtype: torch.dtype) -> float:
    # On a GPU, small or few products between two synchronisations would measure the kernel launches instead.
    size, products, repeats = (8192, 20, 3) if device.type == "cuda" else (1024, 1, 5)
    if device.type == "cpu" and dtype != torch.float32:
        size = 256  # many CPUs have no 16-bit instructions; a large product would take seconds
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    left @ right  # the first product is slower, because it also selects a kernel
    best_seconds = float("inf")
    for _ in range(repeats):
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(products):
            left @ right
        _synchronize(device)
        best_seconds = min(best_seconds, time.perf_counter() - start)
    return products * 2 * size**3 / best_seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
