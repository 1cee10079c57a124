"""Known errors of CTC implementations, one in each test."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bnb_ds.ctc import head as ctc_head
from bnb_ds.ctc.loss import ctc_loss, linear_ctc_loss
from tests.plain_ctc import plain_linear_ctc


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def target_of(length: int, vocab_size: int, seed: int = 3) -> Tensor:
    """[1, length] random tokens without the blank 0."""
    return torch.randint(1, vocab_size, (1, length), generator=torch.Generator().manual_seed(seed))


def with_gradients(hidden, weight, bias, targets, **options) -> tuple[Tensor, ...]:
    """Loss and gradients of full-length rows [B, T, H] and targets [B, S]."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (hidden, weight, bias)]
    lengths = torch.full((hidden.shape[0],), hidden.shape[1])
    target_lengths = torch.full((hidden.shape[0],), targets.shape[1])
    loss = linear_ctc_loss(*leaves, targets, lengths, target_lengths, **options).loss
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def trained_like(vocab_size: int, hidden_size: int, positions: int, targets: Tensor, seed: int = 0):
    """Hidden states that point at the class of the best path, so that posteriors of its tokens and blanks are near 1.

    All values are exact in bf16, so that rounding the operands changes nothing.
    """
    weight = normal(vocab_size, hidden_size, seed=seed).bfloat16().double()
    path = torch.zeros(targets.shape[0], positions, dtype=torch.int64)
    step = positions // targets.shape[1]
    path[:, : step * targets.shape[1] : step] = targets
    hidden = weight[path] * (20 / hidden_size) + 0.3 * normal(*path.shape, hidden_size, seed=seed + 1)
    return hidden.bfloat16().double(), weight, normal(vocab_size, seed=seed + 2).bfloat16().double()


def relative_error(got: Tensor, exact: Tensor) -> float:
    return ((got.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("positions", [64, 512])
def test_closed_form_with_every_position_needed(positions):
    """With T = S and hidden = 0 there is exactly one path. Float32 must not drift over 512 positions."""
    vocab_size = 28_996
    targets = torch.arange(1, positions + 1)[None]
    loss, grad_hidden, grad_weight, grad_bias = with_gradients(
        torch.zeros(1, positions, 2), torch.zeros(vocab_size, 2), torch.zeros(vocab_size), targets, reduction="sum"
    )
    assert loss.item() == pytest.approx(positions * math.log(vocab_size), rel=1e-6)
    expected = torch.full((vocab_size,), positions / vocab_size)
    expected[1 : positions + 1] -= 1
    assert (grad_bias - expected).abs().max() < 1e-5
    assert grad_hidden.abs().max() == grad_weight.abs().max() == 0


@pytest.mark.parametrize("length", [1, 30, 128, 300, 511])
def test_float32_does_not_drift_over_512_positions(length):
    positions, vocab_size = 512, 40
    hidden, weight, bias = 2 * normal(1, positions, 8), normal(vocab_size, 8, seed=1), normal(vocab_size, seed=2)
    targets = 1 + torch.arange(length)[None] % (vocab_size - 1)
    exact = with_gradients(hidden, weight, bias, targets)
    single = with_gradients(hidden.float(), weight.float(), bias.float(), targets)
    assert single[0].item() == pytest.approx(exact[0].item(), rel=1e-5)
    for got, expected in zip(single[1:], exact[1:], strict=True):
        assert relative_error(got, expected) < 5e-5


def test_long_targets_are_not_falsely_infeasible():
    """Linear space with rescaling loses every path of S >= 400 at peaked posteriors."""
    targets = target_of(480, 50)
    hidden, weight, bias = 30 * normal(1, 1024, 6), normal(50, 6, seed=1), normal(50, seed=2)
    exact = with_gradients(hidden, weight, bias, targets, reduction="sum")[0]
    loss, *gradients = with_gradients(hidden.float(), weight.float(), bias.float(), targets, reduction="sum")
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_logit_gap_of_120_has_its_loss_and_gradient():
    """``softmax().log()`` makes this loss 0 and its gradients NaN."""
    hidden, weight, bias = torch.ones(1, 2, 1), torch.zeros(4, 1), torch.tensor([120.0, 0, 0, 0])
    loss, grad_hidden, _, grad_bias = with_gradients(hidden, weight, bias, torch.tensor([[2]]), reduction="sum")
    assert loss.item() == pytest.approx(120 - math.log(2), rel=1e-6)  # blank and token in either order
    torch.testing.assert_close(grad_bias, torch.tensor([1.0, 0, -1, 0]), rtol=0, atol=1e-6)
    assert (grad_hidden == 0).all()


@pytest.mark.parametrize("blank", [0, 3])
def test_a_class_of_minus_infinity_does_not_poison_the_others(blank):
    """A class that its bias switches off has no effect if no target holds it."""
    (hidden, weight, bias), targets = (
        (normal(2, 6, 3), normal(5, 3, seed=1), normal(5, seed=2)),
        torch.tensor([[1, 2]] * 2),
    )
    expected = with_gradients(hidden, weight[:4], bias[:4], targets, blank=blank)
    off = torch.cat((bias[:4], torch.tensor([-math.inf])))
    loss, grad_hidden, grad_weight, grad_bias = with_gradients(hidden, weight, off, targets, blank=blank)
    torch.testing.assert_close(loss, expected[0])
    torch.testing.assert_close(grad_hidden, expected[1])
    torch.testing.assert_close(grad_weight, F.pad(expected[2], (0, 0, 0, 1)))
    torch.testing.assert_close(grad_bias, F.pad(expected[3], (0, 1)))


@pytest.mark.parametrize(
    ("dead", "targets", "is_impossible"),
    [
        (2, [1, 2], True),  # a token of the target
        (0, [1, 2], False),  # the blank, which no path needs
        (0, [1, 1], True),  # the blank, which must separate equal neighbours
    ],
)
def test_a_target_that_needs_a_class_of_minus_infinity(dead, targets, is_impossible):
    hidden, weight, bias = normal(2, 6, 3), normal(5, 3, seed=1), normal(5, seed=2)
    bias[dead] = -math.inf
    targets, lengths = torch.tensor([targets, [3, 4]]), torch.tensor([6, 6])
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    got = linear_ctc_loss(*leaves, targets, lengths, torch.tensor([2, 2]), reduction="sum")
    assert got.infeasible.tolist() == [is_impossible, False]
    log_probs = F.log_softmax(hidden @ weight.T + bias, -1)
    plain = F.ctc_loss(
        log_probs.transpose(0, 1), targets, lengths, torch.tensor([2, 2]), reduction="none", zero_infinity=True
    )
    torch.testing.assert_close(got.nll, plain.detach())
    gradients = torch.autograd.grad(got.loss, leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][0] == 0).all() == is_impossible
    from_log_probs = ctc_loss(log_probs.detach(), targets, lengths, torch.tensor([2, 2]), reduction="none")
    torch.testing.assert_close(from_log_probs.loss, plain.detach())


@pytest.mark.parametrize("zero_infinity", [True, False])
def test_a_nan_shows_even_in_an_infeasible_row(zero_infinity):
    hidden = normal(2, 2, 3)
    hidden[0, 1, 1] = math.nan
    targets, lengths = torch.tensor([[1, 1], [1, 2]]), torch.tensor([2, 2])
    got = linear_ctc_loss(
        hidden, normal(4, 3), None, targets, lengths, torch.tensor([2, 2]), reduction="sum", zero_infinity=zero_infinity
    )
    assert got.loss.isnan()
    assert got.infeasible.tolist() == [True, False]


def test_all_rows_equal_and_one_long_row():
    """The same sequence: alone, with similar sequences, and with sequences of one position."""
    weight, bias, row = normal(6, 3, seed=1), normal(6, seed=2), normal(7, 3)
    target = [1, 2, 2]
    alone = plain_linear_ctc([row], weight, bias, [target], reduction="sum").item()
    for company, targets in (([row] * 4, [target] * 4), ([row, row[:1], row[:1]], [target, [1], []])):
        lengths = torch.tensor([len(one) for one in company])
        got = linear_ctc_loss(
            torch.nn.utils.rnn.pad_sequence(company, batch_first=True),
            weight,
            bias,
            torch.tensor([token for one in targets for token in one]),
            lengths,
            torch.tensor([len(one) for one in targets]),
            reduction="none",
        )
        assert got.nll[0].item() == pytest.approx(alone, rel=1e-12)
        assert got.nll.sum().item() == pytest.approx(
            plain_linear_ctc(company, weight, bias, targets, reduction="sum").item(), rel=1e-12
        )


def test_bf16_products_keep_the_gradient_of_peaked_posteriors():
    """If the model is sure, P - occ is nearly 0. Contracting P and occ separately in bf16 would lose the difference."""
    targets = torch.cat([target_of(30, 5_000, seed) for seed in range(4)])
    exact = with_gradients(*(case := trained_like(5_000, 64, 120, targets)), targets)
    leaves = [tensor.float().requires_grad_() for tensor in case]
    assert exact[0] < 0.5  # nats per token: the model is nearly sure
    with torch.autocast("cpu", torch.bfloat16):
        lengths = torch.full((4,), 120)
        loss = linear_ctc_loss(*leaves, targets, lengths, torch.full((4,), 30)).loss
    grad_hidden, grad_weight, _ = torch.autograd.grad(loss, leaves)
    assert relative_error(grad_hidden, exact[1]) < 1e-3
    assert relative_error(grad_weight, exact[2]) < 5e-4


def test_fp16_keeps_its_gradient_at_512_tokens():
    """Multiplying P by 1 / (B * S) in fp16 would round most of P to 0."""
    targets = torch.cat([target_of(512, 3_000, seed) for seed in range(2)])
    hidden, weight, bias = normal(2, 520, 16).half(), 0.1 * normal(3_000, 16, seed=1), torch.zeros(3_000)
    half = (hidden, weight.half(), bias.half())
    exact = with_gradients(*(tensor.double() for tensor in half), targets)
    leaves = [tensor.requires_grad_() for tensor in half]
    loss = linear_ctc_loss(*leaves, targets, torch.full((2,), 520), torch.full((2,), 512)).loss
    gradients = torch.autograd.grad(loss * 2.0**12, leaves)  # a loss scale, as fp16 training has
    for got, expected in zip(gradients, exact[1:], strict=True):
        assert relative_error(got, expected * 2.0**12) < 2e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sequences_may_have_any_weights(dtype):
    """Weights may be negative or 0, also in 16 bits, where the largest one decides the scale."""
    tensors = (normal(3, 9, 16), normal(300, 16, seed=1), normal(300, seed=2))
    targets, lengths = target_of(4, 300).repeat(3, 1), torch.full((3,), 9)
    for weights in ([-2.0, -1e-3, 0.0], [0.0, 0.0, 0.0], [1e4, -3.0, 1.0]):
        results = []
        for cast in (lambda tensor: tensor.to(dtype), lambda tensor: tensor.to(dtype).double()):
            leaves = [cast(tensor).requires_grad_() for tensor in tensors]
            output = linear_ctc_loss(*leaves, targets, lengths, torch.full((3,), 4), reduction="none", chunk_tokens=4)
            results.append(torch.autograd.grad((output.loss * torch.tensor(weights)).sum(), leaves))
        for got, exact in zip(*results, strict=True):
            assert (got.double() - exact).norm() <= 3e-3 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_are_not_rounded_to_16_bits(dtype):
    hidden, weight, bias = (tensor.to(dtype) for tensor in (4 * normal(1, 30, 16), normal(900, 16), normal(900)))
    targets = target_of(7, 900)
    exact = with_gradients(hidden.double(), weight.double(), bias.double(), targets, reduction="sum")[0]
    loss = with_gradients(hidden, weight, bias, targets, reduction="sum")[0]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 40, 41])
def test_nothing_depends_on_the_chunk(chunk_tokens):
    case, targets = (normal(4, 10, 3), normal(6, 3, seed=1), normal(6, seed=2)), torch.tensor([[1, 2, 2]] * 4)
    whole = with_gradients(*case, targets, kl_weight=0.2)
    for got, expected in zip(
        with_gradients(*case, targets, kl_weight=0.2, chunk_tokens=chunk_tokens), whole, strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_rows", [0, 1, 433, 434, 1024, 100_000])
def test_default_chunks_are_equal_and_bounded_in_bytes(num_rows):
    weight = torch.empty(28_996, 0)
    chunk_tokens = ctc_head.default_chunk_tokens(weight, num_rows)
    assert 1 <= chunk_tokens <= (48 << 20) // (28_996 * 4)
    num_chunks = math.ceil(num_rows / chunk_tokens)
    assert num_rows - (num_chunks - 1) * chunk_tokens >= chunk_tokens - num_chunks
    assert ctc_head.default_chunk_tokens(torch.empty(100_000_000, 0), 7) == 1


def test_the_same_input_gives_the_same_bits():
    case, targets = (normal(3, 50, 8), normal(300, 8, seed=1), normal(300, seed=2)), target_of(20, 300).repeat(3, 1)
    first = with_gradients(*(tensor.float() for tensor in case), targets, kl_weight=0.1)
    for _ in range(3):
        again = with_gradients(*(tensor.float() for tensor in case), targets, kl_weight=0.1)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
