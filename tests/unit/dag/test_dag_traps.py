"""Where implementations of graphs of slots go wrong: each test is one known trap."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bnb_ds.dag import alignment, head
from bnb_ds.dag.alignment import nll_and_posteriors
from bnb_ds.dag.loss import linear_dag_loss
from bnb_ds.dag.tiles import TiledProjection, Tiles
from tests.plain_dag import plain_nll, random_links

pytestmark = pytest.mark.slow


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def target_of(length: int, vocab_size: int, seed: int = 3) -> Tensor:
    """[1, length]."""
    return torch.randint(0, vocab_size, (1, length), generator=torch.Generator().manual_seed(seed))


def with_gradients(hidden, weight, bias, links, targets, **options) -> tuple[Tensor, ...]:
    """Loss and gradients of full-length graphs [B, L, H] and targets [B, S]."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (hidden, weight, bias, links)]
    lengths = torch.full((hidden.shape[0],), hidden.shape[1])
    target_lengths = torch.full((hidden.shape[0],), targets.shape[1])
    loss = linear_dag_loss(*leaves, targets, lengths, target_lengths, **options).loss
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def graphs(batch_size: int, num_slots: int, sigma: float = 1.0) -> Tensor:
    return torch.stack([random_links(num_slots, seed=50 + i, sigma=sigma) for i in range(batch_size)])


def trained_like(vocab_size: int, hidden_size: int, num_slots: int, targets: Tensor, seed: int = 0):
    """States and links that say: each target takes one path of known slots. Values are those of bf16."""
    weight = normal(vocab_size, hidden_size, seed=seed).bfloat16().double()
    batch_size, length = targets.shape
    path = torch.linspace(0, num_slots - 1, length).long()
    hidden = 0.3 * normal(batch_size, num_slots, hidden_size, seed=seed + 1)
    hidden[:, path] += weight[targets] * (20 / hidden_size)
    scores = normal(batch_size, num_slots, num_slots, seed=seed + 2)
    scores[:, path[:-1], path[1:]] += 12
    is_backward = torch.ones(num_slots, num_slots, dtype=torch.bool).tril()
    links = scores.masked_fill(is_backward, -math.inf)
    links[:, :-1] = links[:, :-1].log_softmax(-1)
    return hidden.bfloat16().double(), weight, normal(vocab_size, seed=seed + 3).bfloat16().double(), links


def relative_error(got: Tensor, exact: Tensor) -> float:
    return ((got.double() - exact).norm() / exact.norm()).item()


def spy(monkeypatch) -> list[int]:
    """How many sequences each call of the careful dynamic programme was given."""
    calls, careful = [], alignment._in_logs

    def counted(problem, with_posteriors):
        calls.append(len(problem.links))
        return careful(problem, with_posteriors)

    monkeypatch.setattr(alignment, "_in_logs", counted)
    return calls


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sigma", [1.0, 5.0, 15.0, 40.0])
def test_peaked_links_are_finite_and_right(sigma, dtype, monkeypatch):
    """A product of scaled probabilities, taken for what it seems, was off by 18% at sigma 15 and infinite at 40."""
    calls = spy(monkeypatch)
    seeds, num_slots, num_tokens = range(6), 128, 24
    log_probs = torch.stack([sigma * normal(num_slots, num_tokens, seed=seed) for seed in seeds]).log_softmax(-1)
    links = graphs(len(seeds), num_slots, sigma)
    own, given = log_probs.to(dtype), links.to(dtype)
    lengths, target_lengths = torch.full((len(seeds),), num_slots), torch.full((len(seeds),), num_tokens)
    nll, posteriors = nll_and_posteriors(own, given, lengths, target_lengths)
    assert bool(calls) == (sigma == 40), "the case must try both ways"
    leaves = own.double().requires_grad_(), given.double().requires_grad_()
    problem = alignment.Problem.of(*leaves, lengths, target_lengths)
    ways = torch.full_like(links[:, 0], -1e9)
    ways[:, 0] = 0
    for step in range(num_tokens):
        if step:
            ways = torch.logsumexp(ways[:, :, None] + leaves[1].clamp(min=-1e9), 1)
        ways = ways + problem.emissions[step]
    exact = -ways[:, -1]
    torch.testing.assert_close(nll.double(), exact.detach(), rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=0)
    occupancy, taken = torch.autograd.grad(exact.sum(), leaves)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(posteriors.slots.double(), -occupancy, rtol=0, atol=tolerance)
    torch.testing.assert_close(posteriors.links.double(), -taken, rtol=0, atol=tolerance)


@pytest.mark.parametrize("offset", [-1e-3, 1e-3])
def test_the_careful_way_begins_where_the_quick_one_may_drop_paths(offset, monkeypatch):
    """Slot 1 is a dead end of probability almost 1; all that counts is exp(-x)."""
    calls = spy(monkeypatch)
    surprise = alignment._DROPPED - offset
    links = torch.full((1, 4, 4), -math.inf, dtype=torch.float64)
    links[0, 0, 1], links[0, 0, 2], links[0, 2, 3] = 0.0, -surprise, 0.0
    nll, posteriors = nll_and_posteriors(
        torch.zeros(1, 4, 3, dtype=torch.float64), links, torch.tensor([4]), torch.tensor([3])
    )
    assert nll.item() == pytest.approx(surprise, rel=1e-12)
    assert posteriors.slots[0].tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert calls == ([1] if offset < 0 else [])


def test_only_the_sequences_in_need_are_done_again(monkeypatch):
    calls = spy(monkeypatch)
    links = torch.cat((graphs(2, 64), graphs(1, 64, sigma=200.0)))
    emissions = normal(3, 64, 20, seed=4).log_softmax(-1)
    lengths, target_lengths = torch.full((3,), 64), torch.tensor([20, 20, 20])
    nll, posteriors = nll_and_posteriors(emissions, links, lengths, target_lengths)
    assert calls == [1]
    for index in range(3):
        alone = slice(index, index + 1)
        one = nll_and_posteriors(emissions[alone], links[alone], lengths[alone], target_lengths[alone])
        assert one[0] == nll[index]
        torch.testing.assert_close(one[1].links[0], posteriors.links[index], rtol=1e-12, atol=0)
        expected = plain_nll(emissions[index], links[index], list(range(20)))
        assert nll[index].item() == pytest.approx(expected.item(), rel=1e-12)


def test_links_that_are_no_probabilities_are_not_trusted_too_far(monkeypatch):
    """Rows that add up to 299 make up for what a step drops."""
    calls = spy(monkeypatch)
    num_slots, num_tokens = 300, 150
    links = torch.full((1, num_slots, num_slots), 0.0, dtype=torch.float64).triu(1)
    links[0][torch.ones(num_slots, num_slots, dtype=torch.bool).tril()] = -math.inf
    nll, _ = nll_and_posteriors(
        torch.zeros(1, num_slots, num_tokens, dtype=torch.float64),
        links,
        torch.tensor([num_slots]),
        torch.tensor([num_tokens]),
    )
    assert nll.item() == pytest.approx(-math.log(math.comb(num_slots - 2, num_tokens - 2)), rel=1e-12)
    assert calls == [1]


@pytest.mark.parametrize("num_tokens", [2, 30, 128, 400])
def test_float32_does_not_drift_over_512_slots(num_tokens):
    num_slots, vocab_size = 512, 40
    case = (2 * normal(1, num_slots, 8), normal(vocab_size, 8, seed=1), normal(vocab_size, seed=2))
    links, targets = graphs(1, num_slots), target_of(num_tokens, vocab_size)
    exact = with_gradients(*case, links, targets)
    single = with_gradients(*(tensor.float() for tensor in (*case, links)), targets)
    assert single[0].item() == pytest.approx(exact[0].item(), rel=1e-5)
    for got, expected in zip(single[1:], exact[1:], strict=True):
        assert relative_error(got, expected) < 1e-4


def test_slots_that_cannot_be_reached_have_no_gradient_of_nan():
    """``torch.logsumexp`` over nothing but -inf has one: every slot before the s-th, at step s."""
    case = (normal(1, 9, 3), normal(5, 3, seed=1), normal(5, seed=2))
    for gradient in with_gradients(*case, graphs(1, 9), target_of(6, 5))[1:]:
        assert gradient.isfinite().all()


@pytest.mark.parametrize("num_live", [3, 12])
def test_rows_that_no_path_passes_are_not_projected_again(monkeypatch, num_live):
    """And what is left out changes nothing."""
    rows, begin = [], TiledProjection.__init__
    targets = torch.arange(num_live)[None]
    hidden, weight, bias, links = trained_like(40, 16, 12, targets)
    links = torch.full_like(links, -math.inf)
    path = torch.linspace(0, 11, num_live).long()
    links[0, path[:-1], path[1:]] = 0.0
    whole = with_gradients(hidden, weight, bias, links, targets)
    monkeypatch.setattr(
        TiledProjection,
        "__init__",
        lambda self, hidden_NH, *others: (rows.append(len(hidden_NH)), begin(self, hidden_NH, *others))[1],
    )
    assert all(
        torch.equal(a, b) for a, b in zip(whole, with_gradients(hidden, weight, bias, links, targets), strict=True)
    )
    assert rows == [12, num_live]
    logits = (hidden[0] @ weight.T + bias).requires_grad_()
    loss = -sum(logits.log_softmax(1)[slot, token] for token, slot in enumerate(path)) / num_live
    expected = torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(whole[1][0], expected @ weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole[2], expected.T @ hidden[0], rtol=0, atol=1e-12)


def test_bf16_products_keep_the_gradient_of_peaked_posteriors():
    """P - posterior nearly vanishes where the model is sure: contracted apart in bf16, the two lose the difference."""
    targets = torch.cat([target_of(30, 5_000, seed) for seed in range(4)])
    exact = with_gradients(*(case := trained_like(5_000, 64, 120, targets)), targets)
    leaves = [tensor.float().requires_grad_() for tensor in case]
    assert exact[0] < 0.5  # nats per token: the model is nearly sure
    with torch.autocast("cpu", torch.bfloat16):
        lengths = torch.full((4,), 120)
        loss = linear_dag_loss(*leaves, targets, lengths, torch.full((4,), 30)).loss
    assert loss.dtype == torch.float32
    gradients = torch.autograd.grad(loss, leaves)
    for got, expected, limit in zip(gradients, exact[1:], (1e-3, 5e-4, 1e-3, 1e-3), strict=True):
        assert relative_error(got, expected) < limit


def test_fp16_keeps_its_gradient_at_256_tokens():
    """1 / (B * S) folded into P in fp16 would round most of P to 0."""
    targets = torch.cat([target_of(256, 1_000, seed) for seed in range(2)])
    half = (normal(2, 260, 16).half(), (0.1 * normal(1_000, 16, seed=1)).half(), torch.zeros(1_000).half())
    links = graphs(2, 260)
    exact = with_gradients(*(tensor.double() for tensor in half), links, targets)
    leaves = [tensor.requires_grad_() for tensor in (*half, links.float())]
    loss = linear_dag_loss(*leaves, targets, torch.full((2,), 260), torch.full((2,), 256)).loss
    gradients = torch.autograd.grad(loss * 2.0**12, leaves)  # a loss scale, as fp16 training has
    for got, expected in zip(gradients, exact[1:], strict=True):
        assert relative_error(got, expected * 2.0**12) < 2e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sequences_may_have_any_weights(dtype):
    """Also negative ones and 0, in 16 bits, where the largest sets the scale."""
    tensors = (normal(3, 9, 16), normal(300, 16, seed=1), normal(300, seed=2))
    targets, lengths, links = target_of(4, 300).repeat(3, 1), torch.full((3,), 9), graphs(3, 9)
    for weights in ([-2.0, -1e-3, 0.0], [0.0, 0.0, 0.0], [1e4, -3.0, 1.0]):
        results = []
        for cast in (lambda tensor: tensor.to(dtype), lambda tensor: tensor.to(dtype).double()):
            leaves = [cast(tensor).requires_grad_() for tensor in tensors]
            output = linear_dag_loss(
                *leaves, links, targets, lengths, torch.full((3,), 4), reduction="none", chunk_tokens=4
            )
            results.append(torch.autograd.grad((output.loss * torch.tensor(weights)).sum(), leaves))
        for got, exact in zip(*results, strict=True):
            assert (got.double() - exact).norm() <= 3e-3 * exact.norm()


@pytest.mark.parametrize("chunk_tokens", [1, 7, 40, 41])
def test_nothing_depends_on_the_chunk(chunk_tokens):
    case = (normal(4, 10, 3), normal(6, 3, seed=1), normal(6, seed=2), graphs(4, 10))
    targets = torch.tensor([[1, 2, 2, 0]] * 4)
    whole = with_gradients(*case, targets)
    for got, expected in zip(with_gradients(*case, targets, chunk_tokens=chunk_tokens), whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_rows", [0, 1, 108, 109, 1024, 100_000])
def test_default_chunks_of_a_gpu_are_equal_and_bounded_in_bytes(num_rows):
    weight = torch.empty(28_996, 0)
    chunk_tokens = head.default_chunk_tokens(weight, num_rows)
    assert 1 <= chunk_tokens <= (192 << 20) // (28_996 * 4)
    num_chunks = math.ceil(num_rows / chunk_tokens)
    assert num_rows - (num_chunks - 1) * chunk_tokens >= chunk_tokens - num_chunks
    assert head.default_chunk_tokens(torch.empty(100_000_000, 0), 7) == 1


@pytest.mark.parametrize("num_rows", [0, 1, 2048, 2049, 5000])
@pytest.mark.parametrize("vocab_size", [2, 28_996])
@pytest.mark.parametrize("chunk_rows", [None, 700])
def test_tiles_cover_everything_once_within_their_bytes(num_rows, vocab_size, chunk_rows):
    tiles, seen = Tiles.of(num_rows, torch.empty(vocab_size, 0), chunk_rows), torch.zeros(num_rows, vocab_size)
    for rows, columns in tiles:
        seen[rows, columns] += 1
        assert 4 * seen[rows, columns].numel() <= 10 << 20
        assert len(seen[rows]) <= (chunk_rows or 2048)
    assert (seen == 1).all()


@pytest.mark.parametrize("impossible", [[], [0, 1, 2], [4, 5, 6, 7]], ids=str)
def test_logsumexp_is_added_up_over_tiles(impossible, monkeypatch):
    """Also where a whole tile, or the first column of one, is impossible."""
    monkeypatch.setattr("bnb_ds.dag.tiles._TILE_BYTES", 2 * 4 * 4)
    hidden, weight, bias = normal(2, 5).float(), normal(11, 5, seed=1).float(), normal(11, seed=2).float()
    bias[impossible] = -math.inf
    expected = torch.logsumexp(hidden.double() @ weight.double().T + bias, 1)
    got = TiledProjection(hidden, weight, bias, None).normalizers()
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6)


def test_the_same_input_gives_the_same_bits():
    case = (normal(3, 50, 8), normal(300, 8, seed=1), normal(300, seed=2), graphs(3, 50))
    targets, single = target_of(20, 300).repeat(3, 1), [tensor.float() for tensor in case]
    first = with_gradients(*single, targets)
    for _ in range(3):
        again = with_gradients(*single, targets)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_can_write_a_softmax_over_its_input(dtype):
    """The head does so on a CPU, where a second buffer would be half of what it holds."""
    for shape in ((3, 1), (5, 7), (2, 28_996)):
        logits = 5 * normal(*shape, dtype=dtype)
        expected = torch.log_softmax(logits, 1)
        assert torch.log_softmax(logits, 1, out=logits) is logits
        assert torch.equal(logits, expected)
