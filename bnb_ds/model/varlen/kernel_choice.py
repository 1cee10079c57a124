"""Which attention kernel a GPU uses. A kernel is tried on a small problem before it is trusted.

A kernel may be missing from the build, refuse the head size or the GPU, or lack a library that it was compiled for. So
each is run once per device, dtype and head size, forward and backward, and compared with the formula on the CPU.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout
from bnb_ds.common.trials import ends_in_time
from bnb_ds.model.varlen.attention_inputs import AttentionInputs, Way
from bnb_ds.model.varlen.operators import WAYS, WINDOW_WAYS

_HALF = (torch.float16, torch.bfloat16)
_FLASH_LARGEST_HEAD = 256
#: relative error of a result or gradient that a kernel may have; float32 products may be in TF32
_TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 4e-2, torch.float32: 1e-2, torch.float64: 1e-2}
_QUERIES, _KEYS = (3, 1, 17), (4, 9, 2)
_WINDOW = 4


class Choice(NamedTuple):
    """The way that is used, and for each faster one that is not, why."""

    way: str
    faults: dict[str, str]


def description(device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    """One line about the choice, for a run's log."""
    if device.type != "cuda":
        return f"attention without a GPU ({device.type})"
    choice = best_way(device.index or 0, dtype, head_size)
    reasons = "; ".join(f"not {name}: {fault}" for name, fault in choice.faults.items())
    return f"attention {choice.way}" + (f" ({reasons})" if reasons else "")


@functools.cache
def best_way(device_index: int, dtype: torch.dtype, head_size: int, *, in_window: bool = False) -> Choice:
    """The fastest implementation that works for these tensors on this GPU; ``"padded"`` if no other does.

    With ``in_window`` it is one of those that know windows, and ``"blocks"`` if no other works. The first call of each
    kind waits for the device.
    """
    device = torch.device("cuda", device_index)
    ways = WINDOW_WAYS if in_window else WAYS
    faults: dict[str, str] = {}
    for name in _candidates(torch.cuda.get_device_capability(device), dtype, head_size):
        if name not in ways:
            continue
        fault = fault_of(ways[name], device, dtype, head_size, in_window)
        if fault is None:
            return Choice(name, faults)
        faults[name] = fault
    return Choice("blocks" if in_window else "padded", faults)


def _candidates(capability: tuple[int, int], dtype: torch.dtype, head_size: int) -> list[str]:
    """The ways that should work, best first, without ``"padded"``."""
    is_new, is_even = capability >= (8, 0), head_size % 8 == 0
    names = []
    if dtype in _HALF and is_new and head_size <= _FLASH_LARGEST_HEAD:
        if importlib.util.find_spec("flash_attn") is not None:
            names.append("flash_attn")
        if is_even:
            names.append("flash")
    if is_even and capability >= (7, 0) and (dtype in (torch.float16, torch.float32) or (dtype in _HALF and is_new)):
        names.append("efficient")
    if is_new:
        names.append("jagged")
    return names


def fault_of(way: Way, device: torch.device, dtype: torch.dtype, head_size: int, in_window: bool = False) -> str | None:
    """What is wrong with an implementation on a device, in a few words; None: it works."""
    devices = [device] if device.type == "cuda" else []
    # The trial must not change what a run draws, and it needs gradients, whoever calls.
    with (
        torch.random.fork_rng(devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        ends_in_time(f"attention by {way.__name__}", "take another release of torch or of flash-attn"),
    ):
        try:
            got = _trial(way, device, dtype, head_size, 0.0, in_window)
            _trial(way, device, dtype, head_size, 0.5, in_window)
        except Exception as error:  # whatever a broken build raises
            return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:160]
        plain = WINDOW_WAYS["blocks"] if in_window else WAYS["padded"]
        expected = _trial(plain, torch.device("cpu"), torch.float64, head_size, 0.0, in_window)
    errors = [float((x.cpu().double() - y).norm() / y.norm()) for x, y in zip(got, expected, strict=True)]
    return None if max(errors) <= _TOLERANCES[dtype] else f"wrong by {max(errors):.1e}"


def _trial(
    way: Way,
    device: torch.device,
    dtype: torch.dtype,
    head_size: int,
    dropout: float,
    in_window: bool,
) -> list[Tensor]:
    """The result and the three gradients on a small problem, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    layout, key_layout = (PackedLayout.from_host(np.array(lengths), device) for lengths in (_QUERIES, _KEYS))
    keys = _QUERIES if in_window else _KEYS
    query, key, value, signal = (
        torch.randn(sum(lengths), 2, head_size, generator=generator).to(device, dtype)
        for lengths in (_QUERIES, keys, keys, _QUERIES)
    )
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    key_layout, window = (layout, _WINDOW) if in_window else (key_layout, None)
    attended = way(AttentionInputs(leaves[0], leaves[1], leaves[2], layout, key_layout, dropout, window=window))
    gradients = torch.autograd.grad(attended, leaves, signal)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return [attended.detach(), *gradients]
