"""The loss and the strategies of a graph of slots on a GPU: equal to the CPU, and deterministic."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bnb_ds.common.packing import PackedLayout
from bnb_ds.dag import kernels as dag_kernels
from bnb_ds.dag.alignment import nll_and_posteriors
from bnb_ds.dag.links import LinkNetwork
from bnb_ds.dag.loss import linear_dag_loss
from bnb_ds.dag.paths import dag_best_path
from bnb_ds.dag.strategies import STRATEGIES, dag_decode
from bnb_ds.recurrences import cuda
from tests.plain_dag import random_links

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")
LENGTHS, TOKENS = [90, 1, 45, 3, 60], [40, 1, 12, 5, 2]


def graphs(sigma: float) -> torch.Tensor:
    longest = max(LENGTHS)
    every = [random_links(n, seed, sigma) for seed, n in enumerate(LENGTHS)]
    return torch.stack([F.pad(one, (0, longest - len(one), 0, longest - len(one)), value=-torch.inf) for one in every])


def case(dtype: torch.dtype, device: torch.device = CUDA, sigma: float = 1.0):
    """Leaves and the rest of the arguments: ragged, packed, with a target that is too long."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((sum(LENGTHS), 64), (3001, 64), (3001,))
    leaves = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    links = graphs(sigma).to(torch.float64 if dtype == torch.float64 else torch.float32)
    targets = torch.randint(0, 9, (sum(TOKENS),), generator=generator)
    leaves = [leaf.to(device).requires_grad_() for leaf in (*leaves, links)]
    cu_seqlens = F.pad(torch.tensor(LENGTHS).cumsum(0), (1, 0)).int().to(device)
    options = {"cu_seqlens": cu_seqlens, "max_input_length": 90, "max_target_length": 40, "chunk_tokens": 50}
    return leaves, (targets.to(device), None, torch.tensor(TOKENS).to(device)), options


def run(leaves, arguments, options):
    output = linear_dag_loss(*leaves, *arguments, **options)
    return output.loss.detach(), output.nll, *torch.autograd.grad(output.loss, leaves)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.float32, 5e-5), (torch.bfloat16, 5e-3), (torch.float16, 2e-3)],
)
@pytest.mark.parametrize("sigma", [1.0, 40.0])
def test_cuda_equals_cpu_in_float64(dtype, tolerance, sigma):
    leaves, arguments, options = case(dtype, sigma=sigma)
    on_cpu = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
    cpu_options = {**options, "cu_seqlens": options["cu_seqlens"].cpu()}
    cpu_arguments = [argument if argument is None else argument.cpu() for argument in arguments]
    for got, exact in zip(run(leaves, arguments, options), run(on_cpu, cpu_arguments, cpu_options), strict=True):
        assert (got.cpu().double() - exact).norm() <= tolerance * exact.norm()
    if dtype == torch.float64:
        path, log_prob = dag_best_path(*leaves, *arguments, **options)
        expected = dag_best_path(*on_cpu, *cpu_arguments, **cpu_options)
        assert torch.equal(path.cpu(), expected[0])
        torch.testing.assert_close(log_prob.cpu(), expected[1])


@pytest.fixture(params=["cuda", "none"])
def other_kernels(request, monkeypatch):
    """Kernels in CUDA C++, or the host."""
    monkeypatch.setenv("BNB_KERNELS", request.param)
    dag_kernels._choose.cache_clear()
    yield request.param
    dag_kernels._choose.cache_clear()


def test_without_triton_the_results_are_the_same(other_kernels):
    device = torch.device("cuda", torch.cuda.current_device())
    launch = cuda.launch_of_graph if other_kernels == "cuda" else None
    ways = [dag_kernels.launch_of(device, kernel) for kernel in dag_kernels._TRIALS]
    assert ways == [launch] * 2, dag_kernels.description(device)
    leaves, arguments, options = case(torch.float64, device)
    on_cpu = [leaf.detach().cpu().requires_grad_() for leaf in leaves]
    cpu_options = {**options, "cu_seqlens": options["cu_seqlens"].cpu()}
    cpu_arguments = [argument if argument is None else argument.cpu() for argument in arguments]
    for got, exact in zip(run(leaves, arguments, options), run(on_cpu, cpu_arguments, cpu_options), strict=True):
        assert (got.cpu() - exact).norm() <= 1e-10 * exact.norm()
    path, _ = dag_best_path(*leaves, *arguments, **options)
    assert torch.equal(path.cpu(), dag_best_path(*on_cpu, *cpu_arguments, **cpu_options)[0])
    log_probs = torch.randn(len(LENGTHS), 90, 40, dtype=torch.float64).log_softmax(2)
    given = (log_probs, graphs(1.0), torch.tensor(LENGTHS))
    known = dag_decode(*given, "joint_viterbi")
    for got, exact in zip(dag_decode(*(each.to(device) for each in given), "joint_viterbi"), known, strict=True):
        assert torch.equal(got.cpu(), exact)


def test_kernels_are_tried_and_their_dynamic_programme_never_waits():
    device = torch.device("cuda", torch.cuda.current_device())
    ways = [dag_kernels.launch_of(device, kernel) for kernel in dag_kernels._TRIALS]
    assert [way.__module__ for way in ways] == ["bnb_ds.dag.triton"] * 2, dag_kernels.description(device)
    links = graphs(1.0).float().to(device)
    log_probs = torch.randn(len(LENGTHS), 90, 40, device=device).log_softmax(2)
    lengths, tokens = torch.tensor(LENGTHS, device=device), torch.tensor(TOKENS, device=device)
    nll_and_posteriors(log_probs, links, lengths, tokens)
    torch.cuda.set_sync_debug_mode("error")
    try:
        nll, _ = nll_and_posteriors(log_probs, links, lengths, tokens)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = (tensor.cpu() for tensor in (log_probs.double(), links.double(), lengths, tokens))
    torch.testing.assert_close(nll.cpu().double(), nll_and_posteriors(*on_cpu)[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_same_input_gives_the_same_bits(dtype):
    first = run(*case(dtype))
    for _ in range(5):
        assert all(torch.equal(one, other) for one, other in zip(first, run(*case(dtype)), strict=True))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_write_the_same_as_on_a_cpu(strategy):
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(len(LENGTHS), 90, 30, generator=generator, dtype=torch.float64).log_softmax(2)
    given = (log_probs, graphs(1.0), torch.tensor(LENGTHS))
    expected = dag_decode(*given, strategy)
    on_gpu = [tensor.to(CUDA) for tensor in given]
    dag_decode(*on_gpu, strategy)
    if strategy != "beam":
        torch.cuda.set_sync_debug_mode("error")
    try:
        got = dag_decode(*on_gpu, strategy)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.cpu(), other)


def test_links_equal_those_of_a_cpu():
    torch.manual_seed(0)
    network = LinkNetwork(32, 4, 90, initializer_range=0.3).double()
    hidden = torch.randn(sum(LENGTHS), 32, dtype=torch.float64)
    results = []
    for device in ("cpu", "cuda"):
        layout = PackedLayout.from_lengths(
            torch.tensor(LENGTHS, device=device), num_tokens=sum(LENGTHS), max_seqlen=max(LENGTHS)
        )
        states = hidden.to(device).requires_grad_()
        links = network.to(device)(states, layout)
        gradient = torch.autograd.grad(links.exp().square().sum(), states)[0]
        results.append((links.detach().cpu(), gradient.cpu()))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
