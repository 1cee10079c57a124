"""`bnb_ds/recurrences/recurrences.cu` as C++ on a CPU.

Every thread of a block is a fiber, and a barrier lets all others run up to the same barrier. The order of threads may
be turned round, so that a missing barrier shows in the numbers.
"""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bnb_ds.recurrences import cuda

_HEAD = """
#include <cmath>
#include <cstdlib>
#include <functional>
#include <vector>
#include <ucontext.h>
#define __global__
#define __device__
#define __shared__ static
using std::exp;
using std::log;
struct Index { int x, y, z; };
static Index threadIdx, blockIdx;
static ucontext_t scheduler;
static std::vector<ucontext_t> fibers;
static std::vector<char> is_done;
static size_t current;
static std::function<void()> body;
static void __syncthreads() { swapcontext(&fibers[current], &scheduler); }
static void enter() { body(); is_done[current] = 1; swapcontext(&fibers[current], &scheduler); }
static void run_block(int lanes, int groups, int backwards) {
    static std::vector<std::vector<char>> stacks;
    const size_t number = size_t(lanes) * groups;
    stacks.resize(number, std::vector<char>(1 << 15));
    fibers.assign(number, ucontext_t());
    is_done.assign(number, 0);
    for (size_t index = 0; index < number; ++index) {
        getcontext(&fibers[index]);
        fibers[index].uc_stack.ss_sp = stacks[index].data();
        fibers[index].uc_stack.ss_size = stacks[index].size();
        fibers[index].uc_link = &scheduler;
        makecontext(&fibers[index], enter, 0);
    }
    for (size_t ended = 0; ended < number;) {
        const size_t before = ended;
        for (size_t place = 0; place < number; ++place) {
            current = backwards ? number - 1 - place : place;
            threadIdx = {int(current % lanes), int(current / lanes), 0};
            swapcontext(&scheduler, &fibers[current]);
            ended += is_done[current];
        }
        // A barrier that some threads of a block never reach hangs a GPU.
        if (ended != before && ended != number) std::abort();
    }
}
"""
_RUN = """
extern "C" void run_{name}(int grid_x, int grid_y, int grid_z, int lanes, int groups, int backwards, {parameters}) {{
    body = [&] {{ {name}({names}); }};
    for (int x = 0; x < grid_x; ++x)
        for (int y = 0; y < grid_y; ++y)
            for (int z = 0; z < grid_z; ++z) {{ blockIdx = {{x, y, z}}; run_block(lanes, groups, backwards); }}
}}
"""


def kernels_of(source: str) -> dict[str, list[str]]:
    """The parameters of each kernel, by its name."""
    found = re.findall(r'extern "C" __global__ void (\w+)\(([^)]*)\)', source)
    return {name: [part.strip() for part in parameters.split(",")] for name, parameters in found}


@functools.cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++")
    source = cuda.source_of(dtype)
    parts = [_HEAD, source]
    for name, parameters in kernels_of(source).items():
        types = [re.sub(r"\b(?!const|real|int64|int|unsigned|char)\w+$", "", each).strip() for each in parameters]
        named = ", ".join(f"{kind} p{number}" for number, kind in enumerate(types))
        parts.append(_RUN.format(name=name, parameters=named, names=", ".join(f"p{n}" for n in range(len(types)))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recurrences.cpp"
        path.write_text("\n".join(parts))
        command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Werror", str(path), "-o", f"{path}.so"]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return ctypes.CDLL(f"{path}.so")


def compiled(backwards: bool) -> Callable[..., Callable[[cuda.Grid, Any], None]]:
    """What stands in the place of `bnb_ds.recurrences.cuda._compiled`."""

    def of(kernel: str, dtype: torch.dtype, device_index: int) -> Callable[[cuda.Grid, Any], None]:
        function = getattr(_library(dtype), f"run_{kernel}")

        def run(grid: cuda.Grid, arguments: Any) -> None:
            values = [
                ctypes.c_void_p(one.data_ptr()) if isinstance(one, torch.Tensor) else ctypes.c_int(one)
                for one in arguments
            ]
            function(*grid, cuda.LANES, cuda.GROUPS, int(backwards), *values)

        return run

    return of
