"""The kernels in CUDA C++: their arithmetic as C++ on the CPU, their compilation, and how they are launched."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from bnb_ds.ctc import kernels as ctc_kernels
from bnb_ds.ctc import recursion
from bnb_ds.dag import alignment as dag_alignment
from bnb_ds.dag import kernels as dag_kernels
from bnb_ds.dag import paths as dag_paths
from bnb_ds.dag import programme, viterbi
from bnb_ds.dag.alignment import Problem
from bnb_ds.recurrences import cuda
from tests import cuda_on_cpu
from tests.compiled import CAPABILITIES, need_triton, spilled_bytes
from tests.plain_dag import random_problem

CPU = torch.device("cpu")
PROBLEMS = {
    "small": ([7, 2, 1, 5, 4, 9], [3, 2, 1, 1, 6, 0], 1.0),  # of one slot, infeasible, empty
    "tiles": ([71, 64, 40], [3, 7, 4], 1.0),
    "every slot": ([12, 9], [12, 9], 1.0),
    "peaked": ([40, 66], [9, 5], 40.0),
}
DTYPES = [torch.float64, torch.float32]


@pytest.fixture(params=[False, True], ids=["forwards", "backwards"])
def on_cpu(request, monkeypatch):
    """Kernels run on the CPU, with the threads of a block in either order."""
    monkeypatch.setattr(cuda, "_compiled", cuda_on_cpu.compiled(request.param))
    return request.param


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_backward(on_cpu, name, dtype):
    exact, given = (Problem.of(*random_problem(*PROBLEMS[name], each)) for each in (torch.float64, dtype))
    nll, posteriors = dag_alignment._in_logs(exact, True)
    got_nll, slots, taken = programme.forward_backward(cuda.launch_of_graph, *given)
    assert slots.dtype == taken.dtype == got_nll.dtype == dtype
    rtol, atol = (1e-11, 1e-11) if dtype == torch.float64 else (2e-6, 2e-5)
    torch.testing.assert_close(got_nll.double(), nll, rtol=rtol, atol=atol)
    torch.testing.assert_close(slots.double(), posteriors.slots, rtol=0, atol=atol)
    torch.testing.assert_close(taken.double(), posteriors.links, rtol=0, atol=atol)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("has_ties", [False, True])
def test_best_path(on_cpu, name, has_ties):
    given = Problem.of(*random_problem(*PROBLEMS[name]))
    if has_ties:
        given = given._replace(emissions=given.emissions.round(), links=given.links.round())
    got, expected = programme.best_path(cuda.launch_of_graph, *given), dag_paths.best_path(given)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("limits", [(0, None), (5, None), (0, 3), (30, 8), (0, 1)])
@pytest.mark.parametrize("has_ties", [False, True])
def test_viterbis_search(on_cpu, limits, has_ties, monkeypatch):
    _, links, lengths, _ = random_problem([7, 2, 1, 40, 9], [1] * 5, 2.0)
    emission = -torch.rand(5, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 0.5
    if has_ties:
        emission, links = emission.round(), links.round()
    arguments = (emission, links, lengths - 1, 1.0, *limits)
    expected = viterbi.viterbi(*arguments)
    monkeypatch.setattr(viterbi, "launch_of", lambda device, kernel: cuda.launch_of_graph)
    for ours, known in zip(viterbi.viterbi(*arguments), expected, strict=True):
        assert torch.equal(ours, known)


def test_nans_and_graphs_without_a_way(on_cpu):
    given = Problem.of(*random_problem([9, 9, 6], [4, 4, 3], 1.0))
    given.emissions[1, 0, 2] = torch.nan
    given.links[2, :, 5] = -torch.inf
    nll, slots, taken = programme.forward_backward(cuda.launch_of_graph, *given)
    assert nll.isnan().tolist() == [True, False, False]
    assert nll[2] == torch.inf
    assert not slots[1:].isnan().any()
    assert slots[2].eq(0).all()
    assert taken[2].eq(0).all()
    path, log_prob = programme.best_path(cuda.launch_of_graph, *given)
    assert log_prob[2] == -torch.inf
    assert path[2].eq(-1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_ties", [False, True])
@pytest.mark.parametrize(("positions", "tokens"), [(1, 1), (9, 0), (30, 7), (40, 150)])
def test_best_states_of_ctc(on_cpu, dtype, has_ties, positions, tokens):
    generator = torch.Generator().manual_seed(positions)
    emissions = 2 * torch.randn(positions, 3, tokens + 1, generator=generator, dtype=dtype)
    emissions = emissions.round() if has_ties else emissions
    skips = torch.rand(3, tokens, generator=generator) > 0.3
    lengths = torch.tensor([tokens, tokens // 2, 0])
    got = ctc_kernels._best_states_in_cuda(emissions, skips, lengths)
    for ours, known in zip(got, recursion.best_states(emissions, skips, lengths), strict=True):
        assert torch.equal(ours[..., known[-1] > -torch.inf], known[..., known[-1] > -torch.inf])


TRIALS = {("ctc", name): trial for name, trial in ctc_kernels._TRIALS_IN_CUDA.items()}
TRIALS |= {("dag", name): trial for name, trial in dag_kernels._TRIALS_IN_CUDA.items()}


@pytest.mark.parametrize("name", TRIALS, ids=" ".join)
def test_trials_go_well_and_find_what_writes_nothing(name, monkeypatch):
    monkeypatch.setattr(cuda, "_compiled", cuda_on_cpu.compiled(False))
    TRIALS[name](CPU)
    monkeypatch.setattr(torch, "empty", torch.zeros)
    monkeypatch.setattr(cuda, "_compiled", lambda *kernel: lambda grid, arguments: None)
    with pytest.raises(ArithmeticError, match="wrong numbers"):
        TRIALS[name](CPU)


def nvrtc() -> ctypes.CDLL | None:
    """NVRTC of a package of NVIDIA's, or of the system."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    found = [path for folder in folders for path in sorted(folder.glob("*/lib/libnvrtc.so.*"))]
    for library in (*map(str, found), "libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(library)
    return None


def ptx_by_nvrtc(library: ctypes.CDLL, source: str, capability: int) -> str:
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    options = (ctypes.c_char_p * 1)(f"--gpu-architecture=compute_{capability}".encode())
    assert library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"recurrences.cu", 0, None, None) == 0
    code = library.nvrtcCompileProgram(program, 1, options)
    texts = []
    for name in ("ProgramLog", "PTX"):
        getattr(library, f"nvrtcGet{name}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{name}")(program, buffer)
        texts.append(buffer.value.decode())
    library.nvrtcDestroyProgram(ctypes.byref(program))
    if "--gpu-architecture" in texts[0]:
        pytest.skip(f"this NVRTC knows no GPU of capability {capability}; that of CUDA 12 does")
    assert code == 0, texts[0]
    assert texts[0].strip("\0 \n") == ""
    return texts[1]


def ptx_by_nvcc(source: str, capability: int, folder: Path) -> str:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is neither NVRTC (nvidia-cuda-nvrtc-cu12) nor nvcc")
    (folder / "recurrences.cu").write_text(source)
    command = [nvcc, "-ptx", f"-arch=compute_{capability}", "-Werror", "all-warnings", "recurrences.cu"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if f"compute_{capability}" in result.stderr:
        pytest.skip(f"this nvcc knows no GPU of capability {capability}; NVRTC of CUDA 12 does")
    assert result.returncode == 0, result.stderr
    return (folder / "recurrences.ptx").read_text()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_compile_without_spills(capability, tmp_path):
    need_triton()  # which brings an assembler
    library, source = nvrtc(), cuda.source_of(torch.float32)
    ptx = ptx_by_nvcc(source, capability, tmp_path) if library is None else ptx_by_nvrtc(library, source, capability)
    assert ptx.count(".entry") == len(cuda_on_cpu.kernels_of(source))
    assert spilled_bytes(ptx, tmp_path) == 0
    assert "ld.global.nc" not in ptx  # no cache that does not see what other threads write


def test_torch_launches_what_nvrtc_has_compiled(monkeypatch):
    launched = []

    def compile_kernel(source, name):
        assert source.startswith("#define real float\n")
        assert f"void {name}(" in source
        return lambda grid, block, args: launched.append((name, grid, block, len(args)))

    monkeypatch.setattr(torch.cuda, "_compile_kernel", compile_kernel, raising=False)
    cuda._compiled.cache_clear()
    problem = Problem.of(*random_problem([70, 40], [5, 3], 1.0, torch.float32))
    programme.forward_backward(cuda.launch_of_graph, *problem)
    cuda._compiled.cache_clear()
    blocks = [("dag_forward", (2, 1, 1)), ("dag_backward", (2, 1, 1)), ("dag_links", (2, 9, 3))]
    assert [one[:3] for one in launched] == [(*each, (32, 8, 1)) for each in blocks]
    parameters = cuda_on_cpu.kernels_of(cuda.source_of(torch.float32))
    assert all(number == len(parameters[name]) for name, *_, number in launched)


def test_cupy_launches_where_an_older_torch_cannot(monkeypatch):
    monkeypatch.delattr(torch.cuda, "_compile_kernel", raising=False)
    monkeypatch.setitem(sys.modules, "cupy", None)
    cuda._compiled.cache_clear()
    with pytest.raises(RuntimeError, match=r"torch .* compiles no kernels \(2.9 does\), and there is no cupy"):
        cuda.launch("ctc_back", (1, 1, 1), torch.zeros(1))
    launched, entered = [], []

    class Context:
        def __init__(self, *given):
            self.given = given

        def __enter__(self):
            entered.append(self.given)

        def __exit__(self, *error):
            return None

    module = types.SimpleNamespace(
        get_function=lambda name: lambda grid, block, values: launched.append((name, grid, block, values))
    )
    package = types.ModuleType("cupy")
    package.RawModule = lambda code: module
    package.cuda = types.SimpleNamespace(Device=Context, ExternalStream=Context)
    monkeypatch.setitem(sys.modules, "cupy", package)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: types.SimpleNamespace(cuda_stream=7))
    numbers = torch.zeros(3)
    cuda.launch("ctc_back", (4, 1, 1), numbers, 12)
    cuda._compiled.cache_clear()
    assert launched == [("ctc_back", (4, 1, 1), (32, 8, 1), (numbers.data_ptr(), 12))]
    assert [type(value).__name__ for value in launched[0][3]] == ["uint64", "int32"]
    assert entered == [(-1,), (7,)]
