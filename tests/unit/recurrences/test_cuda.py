"""The kernels in CUDA C++: their arithmetic as C++ on the CPU, their compilation, and how they are launched."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
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
from bnb_ds.recurrences import cuda, nvrtc
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
    with cuda_on_cpu.kernels_run_here(monkeypatch, backwards=request.param):
        yield request.param


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
    with cuda_on_cpu.kernels_run_here(monkeypatch):
        TRIALS[name](CPU)
    monkeypatch.setattr(torch, "empty", torch.zeros)
    monkeypatch.setattr(cuda, "launch", lambda name, grid, *arguments: None)
    with pytest.raises(ArithmeticError, match="wrong numbers"):
        TRIALS[name](CPU)


def need_nvrtc() -> None:
    try:
        nvrtc._nvrtc()
    except RuntimeError as error:
        pytest.skip(str(error))


@contextmanager
def known_to_nvrtc(capability: int) -> Iterator[None]:
    """Skips the test if the block asks for an architecture that NVRTC lacks."""
    try:
        yield
    except RuntimeError as error:
        if "--gpu-architecture" not in str(error):
            raise
        pytest.skip(f"this NVRTC knows no GPU of capability {capability}; that of CUDA 12 does")


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
    source = cuda.source_of(torch.float32)
    try:
        nvrtc._nvrtc()
    except RuntimeError:
        ptx = ptx_by_nvcc(source, capability, tmp_path)
    else:
        with known_to_nvrtc(capability):
            ptx = nvrtc.build(source, f"compute_{capability}").decode().rstrip("\0")
    assert ptx.count(".entry") == len(cuda_on_cpu.kernels_of(source))
    assert spilled_bytes(ptx, tmp_path) == 0
    assert "ld.global.nc" not in ptx  # no cache that does not see what other threads write


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_what_a_gpu_loads_is_compiled_without_a_toolkit(capability, dtype, monkeypatch):
    need_nvrtc()
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")
    loaded = []
    monkeypatch.setattr(nvrtc, "load", loaded.append)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: divmod(capability, 10))
    with known_to_nvrtc(capability):
        cuda._module.__wrapped__(dtype, 0)
    (code,) = loaded
    assert code.startswith(b"\x7fELF")
    assert all(name.encode() in code for name in cuda_on_cpu.kernels_of(cuda.source_of(dtype)))


def test_what_nvrtc_refuses_is_said_in_its_words():
    need_nvrtc()
    with pytest.raises(RuntimeError, match=r"NVRTC cannot compile for sm_80 \(error 6\): recurrences.cu\(1\): error: "):
        nvrtc.build("no C++\n", "sm_80")


def test_a_driver_that_refuses_is_named(on_cpu):
    with pytest.raises(RuntimeError, match="the driver says CUDA_ERROR_NOT_FOUND"):
        cuda.launch("no_kernel", (1, 1, 1), torch.zeros(1))


def test_without_nvrtc_the_reason_is_said(monkeypatch):
    def missing(name):
        raise OSError(name)

    nvrtc._nvrtc.cache_clear()
    monkeypatch.setattr(nvrtc.ctypes, "CDLL", missing)
    with pytest.raises(RuntimeError, match="there is no NVRTC, which torch for CUDA brings: pip install"):
        nvrtc.build("", "sm_80")
    nvrtc._nvrtc.cache_clear()


def test_launches_are_on_the_device_and_stream_of_the_tensors(on_cpu, monkeypatch):
    events, stream = [], torch.cuda.current_stream(0)

    @contextmanager
    def device_of(tensor):
        events.append(tensor)
        yield
        events.append("left")

    def current_stream(device):
        events.append(device)
        return stream

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    back = torch.zeros(2, 1, 3, dtype=torch.uint8)
    states = torch.empty(2, 1, dtype=torch.int64)
    cuda.launch("ctc_back", (1, 1, 1), back, torch.tensor([2]), states, 2, 1, 3)
    assert states.tolist() == [[2], [2]]
    assert events[0] is back
    assert events[1:] == [back.get_device(), "left"]


def test_no_sequences_launch_nothing(on_cpu):
    links = torch.zeros(0, 5, 5)
    at_end, path_of = programme.best_of_each_length(
        cuda.launch_of_graph, links[:, 0], links, torch.zeros(0, dtype=torch.int64), 3
    )
    assert at_end.shape == (0, 3)
    assert path_of(torch.zeros(0, dtype=torch.int64)).shape == (0, 5)


def test_sequences_far_apart(on_cpu, tmp_path):
    """Strides of more than 31 bits, in a sparse file."""
    _, links, lengths, _ = random_problem([5, 4], [1, 1], 1.0, torch.float32)
    apart = 2**31 + 8
    numbers = torch.from_file(str(tmp_path / "links"), shared=True, size=apart + 25)
    far = numbers.as_strided(links.shape, (apart, 5, 1)).copy_(links)
    emission, last = torch.zeros(2, 5), lengths - 1
    got, expected = (
        programme.best_of_each_length(cuda.launch_of_graph, emission, one, last, 4)[0] for one in (far, links)
    )
    assert torch.equal(got, expected)
