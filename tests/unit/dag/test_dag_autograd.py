"""The loss of a graph under everything that torch does around a function."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bnb_ds.common.packing import PackedLayout
from bnb_ds.dag.links import LinkNetwork
from bnb_ds.dag.loss import linear_dag_loss
from bnb_ds.dag.ngrams import linear_dag_ngram_loss
from tests.plain_dag import random_links

pytestmark = pytest.mark.slow

TARGETS, TARGET_LENGTHS = torch.tensor([1, 1, 2, 0, 3]), torch.tensor([3, 2])
CU_SEQLENS = torch.tensor([0, 4, 7], dtype=torch.int32)
IS_LINK = torch.ones(4, 4, dtype=torch.bool).triu(1)
LINKS = torch.stack([random_links(4), torch.full((4, 4), -math.inf, dtype=torch.float64)])
LINKS[1, :3, :3] = random_links(3, seed=1)


def leaves(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Hidden [N, H], weight [V, H], bias [V], links [B, L, L]."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((7, 3), (5, 3), (5,))
    tensors = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    return tuple(tensor.to(dtype).requires_grad_() for tensor in (*tensors, LINKS.clone()))


def loss_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, links: Tensor, **options) -> Tensor:
    return linear_dag_loss(
        hidden, weight, bias, links, TARGETS, None, TARGET_LENGTHS, cu_seqlens=CU_SEQLENS, **options
    ).loss


def ngram_loss_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, links: Tensor, **options) -> Tensor:
    return linear_dag_ngram_loss(
        hidden, weight, bias, links, TARGETS, None, TARGET_LENGTHS, cu_seqlens=CU_SEQLENS, **options
    ).loss


def with_real_links(function, **options):
    """As a function of links that are there; the others are -inf, of which no difference can be taken."""

    def called(hidden, weight, bias, values):
        links = torch.full_like(LINKS, -math.inf).masked_scatter(-math.inf < LINKS, values)
        return function(hidden, weight, bias, links, **options)

    return called


@pytest.mark.parametrize("function", [loss_of, ngram_loss_of])
@pytest.mark.parametrize("options", [{}, {"reduction": "sum", "chunk_tokens": 3}], ids=str)
def test_gradcheck(function, options):
    hidden, weight, bias, links = leaves()
    values = links.detach()[links.detach() > -math.inf].requires_grad_()
    called = with_real_links(function, **options)
    assert torch.autograd.gradcheck(called, (hidden, weight, bias, values))
    assert torch.autograd.gradcheck(lambda h, w, v: called(h, w, None, v), (hidden, weight, values))


def test_gradcheck_without_a_reduction():
    hidden, weight, bias, links = leaves()
    values = links.detach()[links.detach() > -math.inf].requires_grad_()
    called = with_real_links(loss_of, reduction="none", chunk_tokens=2)
    assert torch.autograd.gradcheck(called, (hidden, weight, bias, values))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_derivative_is_refused(reduction):
    loss = loss_of(*(inputs := leaves()), reduction=reduction).sum()
    with pytest.raises(RuntimeError, match=r"no second derivative.* Call backward without create_graph=True"):
        torch.autograd.grad(loss, inputs, create_graph=True)


def test_a_second_derivative_of_ngrams_is_refused():
    with pytest.raises(RuntimeError, match=r"the n-gram loss has no second derivative.* without create_graph=True"):
        torch.autograd.grad(ngram_loss_of(*(inputs := leaves())), inputs, create_graph=True)


@pytest.mark.parametrize(
    ("function", "options"), [(loss_of, {"reduction": "none"}), (loss_of, {}), (ngram_loss_of, {})]
)
def test_a_kept_graph_gives_the_same_gradient_again(function, options):
    inputs = leaves()
    loss = function(*inputs, **options).sum()
    first = torch.autograd.grad(3 * loss, inputs, retain_graph=True)
    again = torch.autograd.grad(3 * loss, inputs)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("function", [loss_of, ngram_loss_of])
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 2), (1, 3)], ids=str)
def test_a_frozen_input_gets_no_gradient_and_changes_no_other(function, wanted):
    inputs = leaves()
    everything = torch.autograd.grad(function(*inputs), inputs)
    some = [tensor.detach().requires_grad_(i in wanted) for i, tensor in enumerate(inputs)]
    function(*some).backward()
    for i, (tensor, gradient) in enumerate(zip(some, everything, strict=True)):
        assert (tensor.grad is None) == (i not in wanted)
        assert i not in wanted or torch.equal(tensor.grad, gradient)


@pytest.mark.parametrize("function", [loss_of, ngram_loss_of])
def test_without_gradients_nothing_is_contracted(function, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a gradient was computed")

    with_gradient = function(*leaves())
    monkeypatch.setattr("bnb_ds.dag.head.LinearDagHead.contract", refuse)
    with torch.no_grad():
        assert torch.equal(function(*leaves()), with_gradient)
    with pytest.raises(AssertionError, match="a gradient was computed"):
        function(*leaves())


class TiedModel(nn.Module):
    """Reads and writes through one matrix, and makes its own links."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.layer = nn.Linear(3, 3)
        self.links = LinkNetwork(3, 1, 4, initializer_range=1.0)

    def hidden(self) -> Tensor:
        return self.layer(self.embedding(torch.tensor([1, 2, 0, 4, 3, 1, 1]))).tanh()

    def log_links(self, hidden: Tensor) -> Tensor:
        return self.links(hidden, PackedLayout.from_cu_seqlens(CU_SEQLENS, num_tokens=7, max_seqlen=4))

    def forward(self, *, checkpointed: bool = False) -> Tensor:
        if not checkpointed:
            hidden = self.hidden()
            return loss_of(hidden, self.embedding.weight, None, self.log_links(hidden))
        hidden = checkpoint(self.hidden, use_reentrant=False)
        links = checkpoint(self.log_links, hidden, use_reentrant=False)
        return checkpoint(loss_of, hidden, self.embedding.weight, None, links, use_reentrant=False)


def gradients_of(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_a_tied_weight_adds_up_both_its_gradients():
    torch.manual_seed(0)
    model = TiedModel().double()
    apart = copy.deepcopy(model)
    weight = model.embedding.weight.detach().clone().requires_grad_()
    hidden = apart.hidden()
    loss = loss_of(hidden, weight, None, apart.log_links(hidden))
    as_output = torch.autograd.grad(loss, (weight, apart.embedding.weight))
    tied = gradients_of(model, model())[0]
    torch.testing.assert_close(tied, as_output[0] + as_output[1], rtol=0, atol=1e-12)


def test_activation_checkpointing_gives_equal_bits():
    torch.manual_seed(0)
    model = TiedModel()
    plain, again = gradients_of(model, model()), gradients_of(model, model(checkpointed=True))
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_the_operands_and_nothing_else(dtype):
    *head, links = leaves()
    rounded = [leaf.to(dtype).float().detach().requires_grad_() for leaf in head]
    exact = loss_of(*(leaf.double() for leaf in rounded), links.float().double())
    with torch.autocast("cpu", dtype):
        loss = loss_of(*rounded, links.float())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    loss.backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in rounded)


@pytest.mark.parametrize("function", [loss_of, ngram_loss_of])
def test_a_gradient_has_the_dtype_of_its_input(function):
    dtypes = [torch.bfloat16, torch.float32, torch.float16, torch.float32]
    inputs = [tensor.detach().to(dtype).requires_grad_() for tensor, dtype in zip(leaves(), dtypes, strict=True)]
    function(*inputs).backward()
    assert [leaf.grad.dtype for leaf in inputs] == dtypes


def test_the_gradient_of_the_weight_is_handed_over_without_a_copy():
    """It is as large as the weight: a second copy would show in the peak memory of training."""
    hidden, weight, bias, links = leaves(torch.float32)
    loss = loss_of(hidden, weight, bias, links)
    finished = loss.grad_fn.saved_tensors[1].data_ptr()
    loss.backward()
    assert weight.grad.data_ptr() == finished
