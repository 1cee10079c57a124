"""The few calls that compile CUDA C++ with NVRTC, which torch brings, and launch it through the GPU's driver.

torch has such calls, but they are private: ``torch.cuda._compile_kernel`` is missing up to 2.7, takes no source that
begins with a macro up to 2.9, and fails where there is no CUDA toolkit from 2.10 on.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

Grid = tuple[int, int, int]


def build(source: str, architecture: str) -> bytes:
    """Code of a source for GPUs of one architecture, such as ``sm_70``; for ``compute_70``, PTX.

    Raises:
        RuntimeError: there is no NVRTC, or it refuses the source or the architecture.
    """
    library, program, size = _nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    code = library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"recurrences.cu", 0, None, None)
    if code:
        raise RuntimeError(f"NVRTC makes no program (error {code})")
    try:
        options = (ctypes.c_char_p * 1)(f"--gpu-architecture={architecture}".encode())
        code = library.nvrtcCompileProgram(program, 1, options)
        texts = []
        for kind in ("ProgramLog", "PTX" if architecture.startswith("compute_") else "CUBIN"):
            getattr(library, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
            texts.append(ctypes.create_string_buffer(max(size.value, 1)))
            getattr(library, f"nvrtcGet{kind}")(program, texts[-1])
            if code:
                said = texts[0].value.decode(errors="replace")
                raise RuntimeError(f"NVRTC cannot compile for {architecture} (error {code}): {said}")
        return texts[1].raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def load(code: bytes) -> ctypes.c_void_p:
    """A module of the current device, from what `build` returns."""
    module = ctypes.c_void_p()
    _check(_driver().cuModuleLoadData(ctypes.byref(module), code))
    return module


def kernel_of(module: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
    """A kernel of a module."""
    kernel = ctypes.c_void_p()
    _check(_driver().cuModuleGetFunction(ctypes.byref(kernel), module, name.encode()))
    return kernel


def launch(kernel: ctypes.c_void_p, grid: Grid, block: Grid, arguments: Sequence[Tensor | int], stream: int) -> None:
    """Launch a kernel on the current device; it gets the addresses of tensors, and numbers as 64-bit integers."""
    values = [ctypes.c_void_p(one.data_ptr()) if isinstance(one, Tensor) else ctypes.c_int64(one) for one in arguments]
    places = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    _check(_driver().cuLaunchKernel(kernel, *grid, *block, 0, ctypes.c_void_p(stream), places, None))


def _check(code: int) -> None:
    if code:
        name = ctypes.c_char_p()
        _driver().cuGetErrorName(code, ctypes.byref(name))
        raise RuntimeError(f"the driver says {(name.value or b'').decode() or code}")


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    """That which torch has loaded, or that of a package of NVIDIA's, of torch's folder or of the system."""
    major = (torch.version.cuda or "").partition(".")[0]
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else [Path(one) for one in spec.submodule_search_locations or ()]
    found = [path for folder in folders for path in sorted(folder.glob("*/lib/libnvrtc.so.*"))]
    found += sorted((Path(torch.__file__).parent / "lib").glob("libnvrtc[.-]*so*"))
    others = ["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"]
    names = [f"libnvrtc.so.{major}"] * bool(major) + [str(path) for path in found if "builtins" not in path.name]
    for name in dict.fromkeys([*names, *others]):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise RuntimeError("there is no NVRTC, which torch for CUDA brings: pip install nvidia-cuda-nvrtc-cu12")
