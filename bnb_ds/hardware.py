"""Peak speed of this rank's device, the denominator of model FLOPs utilisation (MFU)."""

from __future__ import annotations

import time

import torch

# Dense matrix products without sparsity, from the vendor's data sheets: (name part, precision) -> FLOP/s.
_PEAK_FLOPS = {
    ("V100", "fp16"): 125e12,
    ("V100", "fp32"): 15.7e12,
    ("A100", "fp16"): 312e12,
    ("A100", "bf16"): 312e12,
    ("A100", "fp32"): 19.5e12,
    ("H100", "fp16"): 989e12,
    ("H100", "bf16"): 989e12,
    ("H100", "fp32"): 67e12,
    ("H200", "fp16"): 989e12,
    ("H200", "bf16"): 989e12,
    ("H200", "fp32"): 67e12,
}

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def peak_flops(device: torch.device, precision: str) -> tuple[float, str]:
    """FLOP/s that matrix products can reach, and where the figure comes from.

    A known GPU has its data-sheet value; any other device is measured with one large product, which gives the MFU of
    a CPU run its meaning: the share of the speed that this machine's own matrix product reaches.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for (part, known_precision), flops in _PEAK_FLOPS.items():
            if part in name and precision == known_precision:
                return flops, f"{name}, data sheet"
    return _measure_matmul(device, _DTYPES[precision]), "measured with a matrix product"


def _measure_matmul(device: torch.device, dtype: torch.dtype, size: int = 1024, repeats: int = 5) -> float:
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    best_seconds = float("inf")
    for _ in range(repeats):
        _synchronize(device)
        start = time.perf_counter()
        left @ right
        _synchronize(device)
        best_seconds = min(best_seconds, time.perf_counter() - start)
    return 2 * size**3 / best_seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
