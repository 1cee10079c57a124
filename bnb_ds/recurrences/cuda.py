"""Compiles `recurrences.cu` for the GPU at hand with NVRTC, which needs no compiler on the host, and launches it."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bnb_ds.recurrences import nvrtc
from bnb_ds.recurrences.nvrtc import Grid

#: threads of a block, as in the source
LANES, GROUPS = 32, 8
_NUMBERS = {torch.float32: "float", torch.float64: "double"}


def source_of(dtype: torch.dtype) -> str:
    """The source for numbers of a dtype, float32 or float64."""
    text = Path(__file__).with_name("recurrences.cu").read_text(encoding="utf-8")
    return f"#define real {_NUMBERS[dtype]}\n{text}"


def launch(name: str, grid: Grid, *arguments: Tensor | int) -> None:
    """Launch a kernel of the source on the device of its arguments; floats among them have one dtype.

    Raises:
        RuntimeError: the source cannot be compiled here.
    """
    if 0 in grid:  # a driver refuses it, and there is nothing to do
        return
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)
    device = tensors[0].get_device()
    with torch.cuda.device_of(tensors[0]):
        stream = torch.cuda.current_stream(device).cuda_stream
        nvrtc.launch(_kernel(name, dtype, device), grid, (LANES, GROUPS, 1), arguments, stream)


def launch_of_graph(kernel: str, batch_size: int, num_slots: int, *arguments: Tensor | int) -> None:
    """A `bnb_ds.dag.programme.Launch`."""
    tiles = (-(-num_slots // GROUPS), -(-num_slots // LANES)) if kernel == "links" else (1, 1)
    launch(f"dag_{kernel}", (batch_size, *tiles), *arguments, batch_size, num_slots)


def best_states_of_ctc(emissions_TBK: Tensor, skips_BS: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The scores [B, X] of all states at the last position, and what tells the states int64 [T, B] of the best path
    that ends in the states int64 [B]; see `bnb_ds.ctc.recursion.best_states`.
    """
    num_steps, batch_size, num_columns = emissions_TBK.shape
    num_states, device = 2 * num_columns - 1, emissions_TBK.device
    back_TBX = torch.empty(num_steps, batch_size, num_states, dtype=torch.uint8, device=device)
    scores_2BX = emissions_TBK.new_empty(2, batch_size, num_states)
    grid = (batch_size, 1, 1)
    emissions_TBK, skips_BS = emissions_TBK.contiguous(), skips_BS.contiguous()
    launch("ctc_best", grid, emissions_TBK, skips_BS, back_TBX, scores_2BX, num_steps, batch_size, num_columns - 1)

    def states_of(last_B: Tensor) -> Tensor:
        states_TB = torch.empty(num_steps, batch_size, dtype=torch.int64, device=device)
        launch("ctc_back", grid, back_TBX, last_B, states_TB, num_steps, batch_size, num_states)
        return states_TB

    return scores_2BX[(num_steps + 1) % 2], states_of


@functools.cache
def _kernel(name: str, dtype: torch.dtype, device_index: int) -> ctypes.c_void_p:
    """A kernel of the source on a device, which is the current one."""
    return nvrtc.kernel_of(_module(dtype, device_index), name)


@functools.cache
def _module(dtype: torch.dtype, device_index: int) -> ctypes.c_void_p:
    major, minor = torch.cuda.get_device_capability(device_index)
    return nvrtc.load(nvrtc.build(source_of(dtype), f"sm_{major}{minor}"))
