"""Triton kernels where there is no GPU: compiled for GPUs that need not be here, run by Triton's interpreter,
and counted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packaging.version import Version
from torch.utils._python_dispatch import TorchDispatchMode

from tests import launching

CAPABILITIES = [70, 75, 80, 90]


def compiled(
    function, signature: dict[str, str], constants: dict[str, int], capability: int, num_warps: int, **options: int
) -> dict[str, str]:
    """The forms of a compiled kernel by name. Types in ``signature`` of what is a multiple of 16 end with ``:16``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    places = {name: place for place, name in enumerate(function.arg_names)}
    attributes = {
        (places[name],): [["tt.divisibility", 16]] for name, kind in signature.items() if kind.endswith(":16")
    }
    types = {name: signature.get(name, "constexpr").removesuffix(":16") for name in function.arg_names}
    source = ASTSource(function, types, constexprs=constants, attrs=attributes)
    result = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps, **options}
    )
    assert result.asm["cubin"]
    return result.asm


def spilled_bytes(ptx: str, folder: Path) -> int:
    """Bytes of registers that the assembler had to move to memory."""
    import triton

    (folder / "kernel.ptx").write_text(ptx)
    target = re.search(r"\.target (sm_\w+)", ptx)
    assert target is not None
    # Triton brings an assembler for older GPUs and one for newer ones, which reads a newer PTX.
    for assembler in sorted((Path(triton.__file__).parent / "backends" / "nvidia" / "bin").glob("ptxas*")):
        command = [assembler, "-v", f"-arch={target[1]}", folder / "kernel.ptx", "-o", folder / "kernel.cubin"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode == 0:
            spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", result.stderr)
            assert spills, result.stderr
            return sum(map(int, spills))
    raise AssertionError(result.stderr)


def need_triton():
    """The module triton; without it, or with one that is too old for the kernels, a test is skipped."""
    triton = pytest.importorskip("triton", reason="triton is not installed: `pip install -e '.[test]'` brings it")
    if Version(triton.__version__) < Version("3.3"):
        pytest.skip(f"Triton {triton.__version__} has no tl.gather; runs find this out and do without")
    return triton


def run_interpreted(path: str) -> None:
    """Run a file of tests in which kernels are interpreted."""
    triton = need_triton()
    if Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"):
        pytest.skip(f"the interpreter of Triton {triton.__version__} needs NumPy < 2.4; {np.__version__} is installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path]
    result = launching.run(command, env=launching.environment(TRITON_INTERPRET="1"))
    assert result.returncode == 0, result.stdout + result.stderr


class Counted(TorchDispatchMode):
    """Counts operations, each of which would be a launch on a GPU. Views are not."""

    FREE = (
        *("view", "slice", "select", "expand", "unsqueeze", "squeeze", "t", "transpose", "permute", "detach", "alias"),
        *("as_strided", "split", "empty", "new_empty", "new_empty_strided", "empty_like", "_unsafe_view", "device"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in self.FREE:
            self.launches += 1
            self.names.append(name)
        return function(*args, **kwargs or {})
