"""The Triton kernels of graphs, run on the CPU by Triton's interpreter.

`tests/unit/dag/test_dag_triton.py` starts this file with TRITON_INTERPRET=1, which must be set before the kernels are
imported.
"""

from __future__ import annotations

import contextlib

import pytest
import torch

from bnb_ds.dag import alignment as dag_alignment
from bnb_ds.dag import kernels as dag_kernels
from bnb_ds.dag import paths as dag_paths
from bnb_ds.dag import programme, viterbi
from bnb_ds.dag import triton as dag_triton
from bnb_ds.dag.alignment import Problem
from bnb_ds.dag.loss import linear_dag_loss
from tests.plain_dag import random_links, random_problem

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy: logarithms of 0, in lanes not used
CPU = torch.device("cpu")
KERNELS = ("forward_kernel", "backward_kernel", "links_kernel", "best_kernel", "back_kernel")


def problem(*graphs) -> Problem:
    return Problem.of(*random_problem(*graphs))


PROBLEMS = {
    "small": ([7, 2, 1, 5, 4, 9], [3, 2, 1, 1, 6, 0], 1.0),  # of one slot, infeasible, empty
    "tiles": ([131, 64, 90], [3, 7, 4], 1.0),
    "every slot": ([12, 9], [12, 9], 1.0),
    "peaked": ([40, 66], [9, 5], 40.0),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_forward_backward(name, dtype):
    exact = problem(*PROBLEMS[name])
    nll, posteriors = dag_alignment._in_logs(exact, True)
    given = problem(*PROBLEMS[name], dtype)
    got_nll, slots, taken = programme.forward_backward(dag_triton.launch, *given)
    assert slots.dtype == taken.dtype == got_nll.dtype == dtype
    rtol, atol = (1e-11, 1e-11) if dtype == torch.float64 else (2e-6, 2e-5)
    torch.testing.assert_close(got_nll.double(), nll, rtol=rtol, atol=atol)
    torch.testing.assert_close(slots.double(), posteriors.slots, rtol=0, atol=atol)
    torch.testing.assert_close(taken.double(), posteriors.links, rtol=0, atol=atol)
    alone = programme.forward_backward(dag_triton.launch, *given, False)
    assert torch.equal(alone[0], got_nll)
    assert alone[1] is None
    assert alone[2] is None


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("has_ties", [False, True])
def test_best_path(name, has_ties):
    given = problem(*PROBLEMS[name])
    if has_ties:
        given = given._replace(emissions=given.emissions.round(), links=given.links.round())
    path, log_prob = programme.best_path(dag_triton.launch, *given)
    expected = dag_paths.best_path(given)
    assert torch.equal(log_prob, expected[1])
    assert torch.equal(path, expected[0])


@pytest.mark.parametrize("limits", [(0, None), (5, None), (0, 3), (0, 1)])
@pytest.mark.parametrize("has_ties", [False, True])
def test_viterbis_search(limits, has_ties, monkeypatch):
    _, links, lengths, _ = random_problem([7, 2, 1, 66, 9], [1] * 5, 2.0)
    emission = -torch.rand(5, 66, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 0.5
    if has_ties:
        emission, links = emission.round(), links.round()
    arguments = (emission, links, lengths - 1, 1.0, limits[0], min(limits[1] or 12, 12))
    expected = viterbi.viterbi(*arguments)
    monkeypatch.setattr(viterbi, "launch_of", lambda device, kernel: dag_triton.launch)
    for ours, known in zip(viterbi.viterbi(*arguments), expected, strict=True):
        assert torch.equal(ours, known)


def test_a_nan_shows_in_its_own_sequence():
    given = problem([9, 9], [4, 4], 1.0)
    given.emissions[1, 0, 2] = torch.nan
    nll, slots, _ = programme.forward_backward(dag_triton.launch, *given)
    assert nll.isnan().tolist() == [True, False]
    assert not slots[1].isnan().any()


def test_links_without_a_way():
    """A graph whose last slot cannot be reached: infinite loss, and no posterior."""
    given = problem([6, 6], [3, 3], 1.0)
    given.links[0, :, 5] = -torch.inf
    nll, slots, taken = programme.forward_backward(dag_triton.launch, *given)
    assert nll[0] == torch.inf
    assert slots[0].eq(0).all()
    assert taken[0].eq(0).all()
    path, log_prob = programme.best_path(dag_triton.launch, *given)
    assert log_prob[0] == -torch.inf
    assert path[0].eq(-1).all()
    torch.testing.assert_close(slots[1].sum(0), torch.ones(3, dtype=torch.float64))


def test_the_whole_loss_and_its_path(monkeypatch):
    """Ragged graphs, of which one is infeasible and one has a single slot, through the kernels and through PyTorch."""
    generator = torch.Generator().manual_seed(0)
    lengths, targets = [12, 1, 70, 3], [[5, 2, 2, 7], [3], [1, 4, 6], [1, 1, 1, 1]]
    links = torch.full((4, 70, 70), -torch.inf, dtype=torch.float64)
    for row, (length, graph) in enumerate(zip(lengths, links, strict=True)):
        graph[:length, :length] = random_links(length, row, 1.0)
    shapes = ((sum(lengths), 6), (9, 6), (9,))
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    arguments = (
        torch.tensor([token for target in targets for token in target]),
        None,
        torch.tensor([len(target) for target in targets]),
    )
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()

    def run():
        given = [leaf.clone().requires_grad_() for leaf in (*leaves, links)]
        output = linear_dag_loss(*given, *arguments, cu_seqlens=cu_seqlens)
        path, log_prob = dag_paths.dag_best_path(*given, *arguments, cu_seqlens=cu_seqlens)
        return path, log_prob, output.nll, *torch.autograd.grad(output.loss, given)

    expected = run()
    for module in (dag_alignment, dag_paths):
        monkeypatch.setattr(module, "launch_of", lambda device, kernel: dag_triton.launch)
    monkeypatch.setattr(dag_alignment, "_scaled", None)  # so it is not called
    for one, other in zip(run(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", dag_kernels._TRIALS)
def test_trials_go_well_on_the_device_of_the_tensors(name, monkeypatch):
    """Triton launches on the current device. A stand-in for the context that makes a device current is watched."""
    entered, launched = [], []

    @contextlib.contextmanager
    def device_of(tensor):
        entered.append(tensor.device)
        yield
        entered.pop()

    class Watched:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            launched.append(len(entered))
            return self.kernel[grid]

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for kernel in KERNELS:
        monkeypatch.setattr(dag_triton, kernel, Watched(getattr(dag_triton, kernel)))
    dag_kernels._TRIALS[name](CPU)
    assert launched == [1] * (3 if name == "alignment" else 4)


@pytest.mark.parametrize(("name", "kernel"), [("alignment", "backward_kernel"), ("best path", "back_kernel")])
def test_a_kernel_that_writes_nothing_is_found(name, kernel, monkeypatch):
    class Idle:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: None

    monkeypatch.setattr(dag_triton, kernel, Idle())
    with pytest.raises(ArithmeticError, match="wrong numbers"):
        dag_kernels._TRIALS[name](CPU)
