"""The fused CTC head on a GPU: equal to the CPU, deterministic, without waiting, and as fast and small as promised."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bnb_ds.bench.ctc import Shape, measure
from bnb_ds.ctc import alignment as ctc_alignment
from bnb_ds.ctc import kernels as ctc_kernels
from bnb_ds.ctc import native
from bnb_ds.ctc.greedy import collapse, linear_argmax
from bnb_ds.ctc.loss import linear_ctc_loss
from bnb_ds.ctc.viterbi import linear_ctc_best_path
from bnb_ds.recurrences import ways

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")


def case(dtype: torch.dtype, device: torch.device = CUDA, positions: int = 90, tokens: int = 40):
    """Packed leaves and the rest of the arguments: ragged, with repeats, an empty and an infeasible target."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([positions, 1, positions // 2, 3])
    targets = [torch.randint(1, 9, (n,), generator=generator) for n in (tokens, 0, tokens // 4, 5)]
    shapes = ((int(lengths.sum()), 64), (3001, 64), (3001,))
    leaves = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]
    arguments = (torch.cat(targets).to(device), None, torch.tensor([len(target) for target in targets]).to(device))
    options = {
        "cu_seqlens": F.pad(lengths.cumsum(0), (1, 0)).int().to(device),
        "max_input_length": positions,
        "max_target_length": tokens,
        "kl_weight": 0.1,
        "chunk_tokens": 50,
    }
    return leaves, arguments, options


def run(leaves, arguments, options):
    output = linear_ctc_loss(*leaves, *arguments, **options)
    return output.loss.detach(), output.nll, *torch.autograd.grad(output.loss, leaves)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 5e-3), (torch.float16, 2e-3)],
)
@pytest.mark.parametrize("tokens", [1, 40, 600])
def test_cuda_equals_cpu_in_float64(dtype, tolerance, tokens):
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    leaves, arguments, options = case(dtype, positions=3 * tokens, tokens=tokens)
    on_cpu = [leaf.detach().double().cpu().requires_grad_() for leaf in leaves]
    cpu_options = {**options, "cu_seqlens": options["cu_seqlens"].cpu()}
    expected = run(on_cpu, [argument if argument is None else argument.cpu() for argument in arguments], cpu_options)
    for got, exact in zip(run(leaves, arguments, options), expected, strict=True):
        assert (got.cpu().double() - exact).norm() <= tolerance * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_same_input_gives_the_same_bits(dtype):
    first = run(*case(dtype))
    for _ in range(5):
        assert all(torch.equal(one, other) for one, other in zip(first, run(*case(dtype)), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_host_never_waits(dtype):
    arguments = case(dtype)
    run(*arguments)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(*arguments)
        path = linear_argmax(*(leaf.detach() for leaf in arguments[0])).view(1, -1)
        collapse(path, torch.full((1,), path.shape[1], device=CUDA))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_kernels_are_tried_and_said():
    device = torch.device("cuda", torch.cuda.current_device())
    text = ctc_kernels.description(device)
    assert all(ctc_kernels.uses_triton(device, kernel) for kernel in ctc_kernels._TRIALS), text
    assert text.startswith("CTC in Triton kernels (")


@pytest.mark.parametrize("tokens", [40, 600])
def test_torchs_ctc_loss_in_place_of_triton(monkeypatch, tokens):
    arguments = case(torch.float32, positions=3 * tokens, tokens=tokens)
    expected = run(*arguments)
    monkeypatch.setattr(ctc_alignment, "alignment_way", lambda device: native)
    for one, other in zip(run(*arguments), expected, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()


@pytest.mark.parametrize("kernels", ["triton,cuda", "cuda", "none"])
def test_best_paths_equal_those_of_the_cpu(kernels, monkeypatch):
    monkeypatch.setenv("BNB_KERNELS", kernels)
    monkeypatch.setattr(ctc_kernels, "_choose", ctc_kernels._choose.__wrapped__)
    choice = ctc_kernels._choose(torch.device("cuda", torch.cuda.current_device()))
    assert choice.ways["best path"] == {"triton,cuda": ways.TRITON, "cuda": ways.CUDA, "none": None}[kernels], (
        choice.text
    )
    leaves, (targets, _, target_lengths), options = case(torch.float64)
    options = {name: value for name, value in options.items() if name != "kl_weight"}
    path, log_prob = linear_ctc_best_path(*leaves, targets, None, target_lengths, **options)
    options["cu_seqlens"] = options["cu_seqlens"].cpu()
    on_cpu = [leaf.detach().cpu() for leaf in leaves]
    expected = linear_ctc_best_path(*on_cpu, targets.cpu(), None, target_lengths.cpu(), **options)
    assert torch.equal(path.cpu(), expected[0])
    torch.testing.assert_close(log_prob.cpu(), expected[1])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_kernels_run_on_a_device_that_is_not_the_current_one():
    first = run(*case(torch.float16))
    second = run(*case(torch.float16, torch.device("cuda", 1)))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one.cpu(), other.cpu())


def test_collapse_equals_that_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    paths, lengths = (
        torch.randint(0, 3, (50, 30), generator=generator),
        torch.randint(0, 31, (50,), generator=generator),
    )
    for got, expected in zip(collapse(paths.to(CUDA), lengths.to(CUDA)), collapse(paths, lengths), strict=True):
        assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("tokens", [30, 512])
def test_speed_and_memory_at_full_size(tokens):
    if not ctc_kernels.uses_triton(CUDA, "softmax"):
        pytest.skip(ctc_kernels.description(CUDA))
    result = measure(Shape(32, 512, tokens, 28_996, 768), CUDA, torch.bfloat16, kl_weight=0.1, repeats=5)
    seconds, peak = result["seconds"], result["peak_bytes"]
    assert seconds["reference"] >= 3 * seconds["fused"], result
    assert seconds["torch"] >= 2 * seconds["fused"], result
    assert peak["reference"] >= 15 * peak["fused"], result
    assert peak["torch"] >= 12 * peak["fused"], result
