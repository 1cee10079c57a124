"""The choice of kernels: tried and said; and none of them launches a kernel per position on a GPU."""

from __future__ import annotations

import contextlib
import sys
import types

import pytest
import torch
from torch.nn import functional as F

import bnb_ds.ctc
from bnb_ds.ctc import alignment as ctc_alignment
from bnb_ds.ctc import head as ctc_head
from bnb_ds.ctc import kernels as ctc_kernels
from bnb_ds.ctc import native, recursion
from bnb_ds.ctc.loss import linear_ctc_loss
from tests.compiled import Counted, need_triton

CPU, GPU, META = torch.device("cpu"), torch.device("cuda", 0), torch.device("meta")


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that there is a GPU, and let trials run on the CPU, to test only the choice."""

    def no_nvrtc(device):
        raise RuntimeError("no NVRTC")

    def pretend(name: str, capability: tuple[int, int], trials: ctc_kernels.Trials) -> None:
        monkeypatch.setattr("torch.cuda.get_device_name", lambda device: name)
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
        on_cpu = {name: lambda device, trial=trial: trial(CPU) for name, trial in trials.items()}
        monkeypatch.setattr(ctc_kernels, "_TRIALS", on_cpu)
        monkeypatch.setattr(ctc_kernels, "_TRIALS_IN_CUDA", {"best path": no_nvrtc})

    ctc_kernels._choose.cache_clear()
    yield pretend
    ctc_kernels._choose.cache_clear()


@pytest.fixture
def plant_triton(monkeypatch):
    """Put a package named triton, whose kernels do nothing or raise, in the place of the real one."""
    ours = sys.modules.get("bnb_ds.ctc.triton")

    def forget():
        sys.modules.pop("bnb_ds.ctc.triton", None)
        vars(bnb_ds.ctc).pop("triton", None)

    def plant(at_launch: Exception | None, at_import: Exception | None = None) -> None:
        class Kernel:
            def __getitem__(self, grid):
                def launch(*args, **kwargs):
                    if at_launch is not None:
                        raise at_launch

                return launch

        class Package(types.ModuleType):
            @property
            def __version__(self):
                if at_import is not None:
                    raise at_import
                return "3.2.0"

        package, language = Package("triton"), types.ModuleType("triton.language")
        package.jit = lambda function=None, **options: Kernel() if function else lambda function: Kernel()
        package.next_power_of_2 = lambda number: 1 << (number - 1).bit_length()
        package.language = language
        monkeypatch.setitem(sys.modules, "triton", package)
        monkeypatch.setitem(sys.modules, "triton.language", language)
        forget()

    yield plant
    forget()
    if ours is not None:
        sys.modules["bnb_ds.ctc.triton"] = bnb_ds.ctc.triton = ours


@pytest.mark.parametrize("capability", [(7, 0), (7, 5), (8, 0), (9, 0)])
def test_kernels_whose_trials_go_well_are_taken_once_and_said(gpu, plant_triton, capability, caplog):
    plant_triton(None)
    tried = []
    gpu("a GPU", capability, {name: lambda device, name=name: tried.append(name) for name in ctc_kernels._TRIALS})
    caplog.set_level("INFO")
    for _ in range(3):
        assert all(ctc_kernels.uses_triton(GPU, kernel) for kernel in ("alignment", "best path", "softmax"))
    assert ctc_kernels.alignment_way(GPU).__name__ == "bnb_ds.ctc.triton"
    assert tried == ["alignment", "best path", "softmax"]
    text = f"CTC in Triton kernels (a GPU: capability {capability[0]}.{capability[1]})"
    assert ctc_kernels.description(GPU) == text
    assert caplog.messages == [text]


NO_GATHER = "module 'triton.language' has no attribute 'gather'"
NO_COMPILER = "Failed to find C compiler. Please specify via CC environment variable."


@pytest.mark.parametrize(
    ("at_launch", "at_import", "reason"),
    [
        (AttributeError(NO_GATHER), None, f"Triton 3.2.0: AttributeError: {NO_GATHER}"),
        (RuntimeError(NO_COMPILER), None, f"Triton 3.2.0: RuntimeError: {NO_COMPILER}"),
        (None, OSError("libcuda.so.1"), "triton cannot be imported: OSError: libcuda.so.1"),
    ],
)
def test_a_broken_triton_falls_back_with_the_reason(gpu, plant_triton, at_launch, at_import, reason):
    plant_triton(at_launch, at_import)
    gpu("A100", (8, 0), ctc_kernels._TRIALS)
    assert not any(ctc_kernels.uses_triton(GPU, kernel) for kernel in ctc_kernels._TRIALS)
    assert ctc_kernels.alignment_way(GPU) is native
    text = ctc_kernels.description(GPU)
    assert text == (
        "CTC not in Triton kernels: alignment by torch's ctc_loss, best path on the host, softmax in batched PyTorch "
        f"(A100: capability 8.0; alignment, best path, softmax: {reason}; best path: CUDA C++: RuntimeError: no NVRTC)"
    )


def test_kernels_that_write_nothing_are_found_out(gpu, plant_triton, monkeypatch):
    plant_triton(None)
    monkeypatch.setattr(torch, "empty", torch.zeros)
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    gpu("A100", (8, 0), ctc_kernels._TRIALS)
    assert not any(ctc_kernels.uses_triton(GPU, kernel) for kernel in ctc_kernels._TRIALS)
    assert "Triton 3.2.0: ArithmeticError: wrong numbers (" in ctc_kernels.description(GPU)


def test_one_bad_kernel_leaves_the_others(gpu, plant_triton):
    plant_triton(None)

    def bad(device):
        raise ArithmeticError("wrong numbers (path)")

    gpu("A100", (8, 0), {"alignment": lambda device: None, "best path": bad, "softmax": lambda device: None})
    assert [ctc_kernels.uses_triton(GPU, kernel) for kernel in ("alignment", "best path", "softmax")] == [
        True,
        False,
        True,
    ]
    assert ctc_kernels.description(GPU) == (
        "CTC partly in Triton kernels: best path on the host "
        "(A100: capability 8.0; best path: Triton 3.2.0: ArithmeticError: wrong numbers (path); best path: CUDA C++: "
        "RuntimeError: no NVRTC)"
    )


def test_no_triton_and_an_old_gpu(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    gpu("A100", (8, 0), ctc_kernels._TRIALS)
    assert "triton cannot be imported: ModuleNotFoundError" in ctc_kernels.description(GPU)
    ctc_kernels._choose.cache_clear()
    gpu("Tesla P100", (6, 0), ctc_kernels._TRIALS)
    assert ctc_kernels.alignment_way(GPU) is native
    assert ctc_kernels.description(GPU).endswith(
        "softmax: capability 6.0, below 7.0; best path: CUDA C++: RuntimeError: no NVRTC)"
    )


def test_the_best_path_in_cuda_where_triton_fails(gpu, plant_triton, monkeypatch):
    plant_triton(RuntimeError(NO_COMPILER))
    gpu("A100", (8, 0), ctc_kernels._TRIALS)
    monkeypatch.setattr(ctc_kernels, "_TRIALS_IN_CUDA", {"best path": lambda device: None})
    assert "best path in CUDA C++, softmax in batched PyTorch (A100" in ctc_kernels.description(GPU)
    monkeypatch.setattr(ctc_kernels, "_best_states_in_cuda", lambda *problem: "in CUDA")
    emissions = types.SimpleNamespace(device=GPU)
    assert ctc_kernels.best_states(emissions, None, None) == "in CUDA"


def test_a_cpu_takes_pytorch():
    assert not ctc_kernels.uses_triton(CPU, "alignment")
    assert ctc_kernels.alignment_way(CPU) is recursion
    assert ctc_kernels.description(CPU) == "CTC in batched PyTorch (cpu)"


def case(seed: int):
    """Arguments of `linear_ctc_loss`: ragged, with runs of equal tokens, empty and infeasible targets."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 14, (4,), generator=generator)
    lengths[0] = 13
    targets = [torch.randint(1, 4, (int(n) // 2 + seed % 2,), generator=generator) for n in lengths]
    leaves = [
        torch.randn(size, generator=generator, dtype=torch.float64) for size in ((int(lengths.sum()), 5), (9, 5), (9,))
    ]
    options = {"cu_seqlens": F.pad(lengths.cumsum(0), (1, 0)).int(), "kl_weight": 0.2, "reduction": "token_sum"}
    return leaves, (torch.cat(targets), None, torch.tensor([len(target) for target in targets])), options


def run(leaves, arguments, options):
    leaves = [leaf.requires_grad_() for leaf in leaves]
    output = linear_ctc_loss(*leaves, *arguments, **options)
    return output.nll, *torch.autograd.grad(output.loss, leaves)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torchs_own_ctc_loss_gives_the_same(monkeypatch, dtype):
    num_infeasible = 0
    for seed in range(24):
        leaves, arguments, options = case(seed)
        expected = run(leaves, arguments, options)
        num_infeasible += int((expected[0] == 0).sum())
        with monkeypatch.context() as patch:
            patch.setattr(ctc_alignment, "alignment_way", lambda device: native)
            got = run([leaf.detach().to(dtype) for leaf in leaves], arguments, options)
        for one, other in zip(got, expected, strict=True):
            tolerance = 1e-9 if dtype == torch.float64 else 2e-5
            assert (one.double() - other).norm() <= tolerance * other.norm().clamp(min=1e-3), seed
    assert num_infeasible > 3


def test_torchs_own_ctc_loss_at_the_edges():
    """Impossible tokens, a NaN, no tokens at all, and a thousand positions in float32."""
    emissions = torch.randn(7, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    emissions[3, 0, 1:] = -torch.inf
    emissions[4, 1] = -torch.inf
    skips, lengths = torch.ones(2, 3, dtype=torch.bool), torch.tensor([3, 2])
    (total, occupancy), expected = (way.forward_backward(emissions, skips, lengths) for way in (native, recursion))
    torch.testing.assert_close(total, expected[0])
    assert total[1] == -torch.inf
    torch.testing.assert_close(occupancy[:, 0], expected[1][:, 0])
    emissions[2, 0, 0] = torch.nan
    assert native.forward_backward(emissions, skips, lengths)[0].isnan().tolist() == [True, False]
    empty = native.forward_backward(emissions[:2, :, :1], skips[:, :0], torch.tensor([0, 0]))
    torch.testing.assert_close(empty[0], emissions[:2, :, 0].sum(0))
    assert empty[1].eq(1).all()
    long = torch.randn(1000, 1, 301, generator=torch.Generator().manual_seed(0))
    long -= long.amax(2, keepdim=True)
    skips, lengths = torch.ones(1, 300, dtype=torch.bool), torch.tensor([300])
    exact = recursion.forward_backward(long.double(), skips, lengths)
    got = native.forward_backward(long, skips, lengths)
    torch.testing.assert_close(got[0].double(), exact[0], rtol=1e-5, atol=0)
    assert (got[1].double() - exact[1]).abs().max() < 2e-4


def launches_of_a_step(positions: int, device: torch.device, dtype: torch.dtype = torch.float32) -> int:
    """Of the loss and its gradients, of three sequences in one chunk."""
    lengths = [positions, positions // 2, positions // 3]
    num_rows, tokens = sum(lengths), positions // 4
    leaves = [
        torch.zeros(size, device=device, dtype=dtype, requires_grad=True) for size in ((num_rows, 6), (40, 6), (40,))
    ]
    targets = 1 + torch.arange(3 * tokens, device=device).view(3, tokens) % 30
    cu_seqlens = F.pad(torch.tensor(lengths, device=device).cumsum(0), (1, 0)).int()
    sizes = {"max_input_length": positions, "max_target_length": tokens, "chunk_tokens": num_rows}
    target_lengths = torch.full((3,), tokens, device=device)
    with Counted() as counted:
        output = linear_ctc_loss(*leaves, targets, None, target_lengths, cu_seqlens=cu_seqlens, kl_weight=0.1, **sizes)
        output.loss.backward()
    return counted.launches


def test_the_number_of_launches_does_not_grow_with_positions(monkeypatch):
    monkeypatch.setattr(ctc_alignment, "alignment_way", lambda device: native)
    few, many = launches_of_a_step(24, CPU), launches_of_a_step(480, CPU)
    assert few == many
    monkeypatch.setattr(ctc_alignment, "alignment_way", lambda device: recursion)
    assert launches_of_a_step(48, CPU) > 100 + many  # so the count would show a loop


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_on_a_gpu_takes_few_launches_and_no_wait(monkeypatch, dtype):
    """On the meta device, whose tensors have no numbers: reading one is an error. Kernels are counted, not run."""
    need_triton()
    from bnb_ds.ctc import triton as ctc_triton

    launched = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: launched.append(grid)

    for name in ("forward_kernel", "occupancy_kernel", "softmax_kernel"):
        monkeypatch.setattr(ctc_triton, name, Kernel())
    # The meta device has no autocast.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)
    monkeypatch.setattr(ctc_alignment, "alignment_way", lambda device: ctc_triton)
    monkeypatch.setattr(ctc_head, "uses_triton", lambda device, kernel: True)
    counts = []
    for positions in (24, 480):
        launched.clear()
        counts.append((launches_of_a_step(positions, META, dtype), len(launched)))
    assert counts[0] == counts[1]
    assert counts[0][1] == (2 if dtype == torch.float32 else 3)
    assert counts[0][0] < 220, counts
