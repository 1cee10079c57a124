"""The fused head with autograd: gradient checks, kept graphs, frozen and tied weights, checkpointing, autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bnb_ds.ctc.loss import ctc_loss, linear_ctc_loss

TARGETS, TARGET_LENGTHS = torch.tensor([1, 1, 2]), torch.tensor([2, 1])
CU_SEQLENS = torch.tensor([0, 4, 7], dtype=torch.int32)


def leaves(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((7, 3), (5, 3), (5,))
    return tuple(torch.randn(s, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() for s in shapes)


def loss_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, **options) -> Tensor:
    options = {"reduction": "mean", "kl_weight": 0.5, **options}
    return linear_ctc_loss(hidden, weight, bias, TARGETS, None, TARGET_LENGTHS, cu_seqlens=CU_SEQLENS, **options).loss


@pytest.mark.parametrize(
    "options", [{}, {"reduction": "sum", "chunk_tokens": 3}, {"reduction": "none", "kl_weight": 0.0}], ids=str
)
def test_gradcheck(options):
    assert torch.autograd.gradcheck(lambda *inputs: loss_of(*inputs, **options), leaves())
    hidden, weight, _ = leaves()
    assert torch.autograd.gradcheck(lambda *inputs: loss_of(*inputs, None, **options), (hidden, weight))


def test_gradcheck_of_log_probabilities():
    """The gradient is right for any numbers, even if they are not normalised log-probabilities."""
    log_probs = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)

    def loss(log_probs):
        return ctc_loss(log_probs, TARGETS, None, TARGET_LENGTHS, cu_seqlens=CU_SEQLENS, kl_weight=0.3).loss

    assert torch.autograd.gradcheck(loss, log_probs)


@pytest.mark.parametrize("options", [{}, {"reduction": "none", "kl_weight": 0.0}], ids=str)
def test_a_second_derivative_is_refused(options):
    with pytest.raises(RuntimeError, match=r"no second derivative.* call backward without create_graph=True"):
        torch.autograd.grad(loss_of(*(inputs := leaves()), **options).sum(), inputs, create_graph=True)


def test_a_second_derivative_of_log_probabilities_is_refused():
    log_probs = torch.randn(7, 5, requires_grad=True)
    loss = ctc_loss(log_probs, TARGETS, None, TARGET_LENGTHS, cu_seqlens=CU_SEQLENS).loss
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, log_probs, create_graph=True)


def test_a_kept_graph_gives_the_same_gradient_again():
    inputs = leaves()
    loss = loss_of(*inputs)
    first = torch.autograd.grad(3 * loss, inputs, retain_graph=True)
    again = torch.autograd.grad(3 * loss, inputs)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_a_frozen_input_gets_no_gradient_and_changes_no_other(wanted):
    inputs = leaves()
    everything = torch.autograd.grad(loss_of(*inputs), inputs)
    some = [tensor.detach().requires_grad_(i in wanted) for i, tensor in enumerate(inputs)]
    loss_of(*some).backward()
    for i, (tensor, gradient) in enumerate(zip(some, everything, strict=True)):
        assert (tensor.grad is None) == (i not in wanted)
        assert i not in wanted or torch.equal(tensor.grad, gradient)


def test_without_gradients_nothing_is_contracted(monkeypatch):
    def refuse(*_):
        raise AssertionError("a gradient was computed")

    with_gradient = loss_of(*leaves())
    monkeypatch.setattr("bnb_ds.ctc.head.LinearCtcHead._contract", refuse)
    with torch.no_grad():
        assert torch.equal(loss_of(*leaves()), with_gradient)
    with pytest.raises(AssertionError, match="a gradient was computed"):
        loss_of(*leaves())


class TiedModel(nn.Module):
    """A model that uses one matrix as its embedding and as its output matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.layer = nn.Linear(3, 3)

    def hidden(self) -> Tensor:
        return self.layer(self.embedding(torch.tensor([1, 2, 0, 4, 3, 1, 1]))).tanh()

    def forward(self, *, checkpointed: bool = False) -> Tensor:
        hidden = checkpoint(self.hidden, use_reentrant=False) if checkpointed else self.hidden()
        if checkpointed:
            return checkpoint(loss_of, hidden, self.embedding.weight, None, use_reentrant=False)
        return loss_of(hidden, self.embedding.weight, None)


def gradients_of(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_a_tied_weight_adds_up_both_its_gradients():
    torch.manual_seed(0)
    model = TiedModel().double()
    apart = copy.deepcopy(model)
    weight = model.embedding.weight.detach().clone().requires_grad_()
    as_output = torch.autograd.grad(loss_of(apart.hidden(), weight, None), (weight, apart.embedding.weight))
    tied = gradients_of(model, model())[0]
    torch.testing.assert_close(tied, as_output[0] + as_output[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_gives_equal_bits(use_reentrant):
    torch.manual_seed(0)
    model = TiedModel()
    plain = gradients_of(model, model())
    assert all(
        torch.equal(one, other) for one, other in zip(plain, gradients_of(model, model(checkpointed=True)), strict=True)
    )
    hidden, weight, bias = leaves()
    expected = torch.autograd.grad(loss_of(hidden, weight, bias), (hidden, weight, bias))
    checkpoint(loss_of, hidden, weight, bias, use_reentrant=use_reentrant).backward()
    assert all(torch.equal(leaf.grad, other) for leaf, other in zip((hidden, weight, bias), expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_the_operands_and_nothing_else(dtype):
    rounded = [leaf.to(dtype).float().detach().requires_grad_() for leaf in leaves()]
    exact = loss_of(*(leaf.double() for leaf in rounded))
    with torch.autocast("cpu", dtype):
        loss = loss_of(*rounded)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    loss.backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in rounded)


def test_a_gradient_has_the_dtype_of_its_input():
    hidden, weight, bias = leaves()
    inputs = [
        tensor.detach().to(dtype).requires_grad_()
        for tensor, dtype in ((hidden, torch.bfloat16), (weight, torch.float32), (bias, torch.float16))
    ]
    loss_of(*inputs).backward()
    assert [leaf.grad.dtype for leaf in inputs] == [torch.bfloat16, torch.float32, torch.float16]


def test_the_gradient_of_the_weight_is_handed_over_without_a_copy():
    """The gradient is as large as the weight, so a second copy would show in the peak memory of training."""
    hidden, weight, bias = leaves(torch.float32)
    loss = loss_of(hidden, weight, bias)
    finished = loss.grad_fn.saved_tensors[1].data_ptr()
    loss.backward()
    assert weight.grad.data_ptr() == finished
