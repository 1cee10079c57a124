"""`bnb_ds/recurrences/recurrences.cu` as C++ on a CPU.

A library with the calls of the GPU's driver runs the kernels: every thread of a block is a fiber, and a barrier lets
all others run up to the same barrier. The order of threads may be turned round, so that a missing barrier shows in the
numbers. Arguments arrive as a driver gets them, by their addresses.
"""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from bnb_ds.recurrences import cuda, nvrtc

_HEAD = """
#include <cmath>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
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
#: what stands between a driver's launch and a kernel: arguments come by their addresses
_RUN = """
static void run_{kernel}(void **places) {{
    body = [=] {{ {kernel}({values}); }};
}}
"""
_DRIVER = """
static int is_backwards;
extern "C" void turn_round(int value) { is_backwards = value; }
extern "C" int cuModuleLoadData(void **module, const char *code) {
    *module = (void *)(code[0] == 'd' ? "_double" : "_float");
    return 0;
}
extern "C" int cuGetErrorName(int code, const char **name) {
    *name = code == 500 ? "CUDA_ERROR_NOT_FOUND" : "CUDA_ERROR_INVALID_VALUE";
    return 0;
}
typedef void (*Kernel)(void **);
extern "C" int cuModuleGetFunction(Kernel *kernel, void *module, const char *name) {
    const auto found = kernels.find(std::string(name) + (const char *)module);
    if (found == kernels.end()) return 500;
    *kernel = found->second;
    return 0;
}
extern "C" int cuLaunchKernel(
    Kernel kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned lanes, unsigned groups, unsigned more,
    unsigned shared, void *stream, void **places, void **extra
) {
    // A GPU takes no empty grid, and so many blocks and threads at most.
    if (!grid_x || !grid_y || !grid_z || grid_y > 65535 || grid_z > 65535) return 1;
    if (lanes * groups > 1024 || more != 1 || shared || extra || stream != (void *)7) return 1;
    kernel(places);
    for (unsigned x = 0; x < grid_x; ++x)
        for (unsigned y = 0; y < grid_y; ++y)
            for (unsigned z = 0; z < grid_z; ++z) {
                blockIdx = {int(x), int(y), int(z)};
                run_block(lanes, groups, is_backwards);
            }
    return 0;
}
"""


def kernels_of(source: str) -> dict[str, list[str]]:
    """The types of the parameters of each kernel, by its name."""
    found = re.findall(r'extern "C" __global__ void (\w+)\(([^)]*)\)', source)
    return {name: [re.sub(r"\w+$", "", part.strip()) for part in given.split(",")] for name, given in found}


def _text() -> str:
    parts, table = [_HEAD], []
    for dtype in (torch.float32, torch.float64):
        source = cuda.source_of(dtype)
        number = source.split(maxsplit=3)[2]
        kernels = kernels_of(source)
        parts += [f"#define {name} {name}_{number}" for name in kernels]
        parts.append(source)
        for name, kinds in kernels.items():
            values = ", ".join(f"*({kind.strip()} *)places[{place}]" for place, kind in enumerate(kinds))
            parts.append(_RUN.format(kernel=name, values=values).replace(f"run_{name}", f"run_{name}_{number}"))
            table.append(f'{{"{name}_{number}", run_{name}_{number}}}')
        parts += [f"#undef {name}" for name in (*kernels, "real")]
    parts.append(f"static const std::map<std::string, void (*)(void **)> kernels = {{{', '.join(table)}}};")
    return "\n".join([*parts, _DRIVER])


@functools.cache
def driver() -> ctypes.CDLL:
    """What stands in the place of the GPU's driver; every kernel of it is made for float and for double."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recurrences.cpp"
        path.write_text(_text())
        command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Werror", str(path), "-o", f"{path}.so"]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return ctypes.CDLL(f"{path}.so")


@contextmanager
def kernels_run_here(monkeypatch: Any, *, backwards: bool = False) -> Iterator[None]:
    """Within the block, kernels that `bnb_ds.recurrences.cuda` launches run on the CPU."""
    library = driver()
    library.turn_round(int(backwards))
    caches = (cuda._kernel, cuda._module)
    with monkeypatch.context() as patch:
        patch.setattr(nvrtc, "_driver", lambda: library)
        patch.setattr(nvrtc, "build", lambda source, architecture: source.split(maxsplit=3)[2].encode())
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
        patch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=7))
        for cache in caches:
            cache.cache_clear()
        yield
        for cache in caches:
            cache.cache_clear()
