"""The Triton kernels of CTC, run on the CPU by Triton's interpreter.

`tests/unit/ctc/test_ctc_triton.py` starts this file with TRITON_INTERPRET=1, which must be set before the kernels are
imported.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.nn import functional as F

from bnb_ds.ctc import alignment as ctc_alignment
from bnb_ds.ctc import head as ctc_head
from bnb_ds.ctc import kernels as ctc_kernels
from bnb_ds.ctc import recursion
from bnb_ds.ctc import triton as ctc_triton
from bnb_ds.ctc.loss import linear_ctc_loss

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy, in lanes not used
CPU = torch.device("cpu")
SIZES = [(1, 1, 1), (9, 4, 5), (9, 2, 32), (12, 3, 33), (3, 1, 512), (4, 2, 0)]  # positions, sequences, tokens


def problem(steps, batch_size, tokens, dtype=torch.float64):
    """Emissions, skips and target lengths; with an impossible token, and a sequence that ends early."""
    generator = torch.Generator().manual_seed(0)
    emissions = torch.randn(steps, batch_size, tokens + 1, generator=generator, dtype=torch.float64).to(dtype)
    if tokens > 1:
        emissions[steps // 2, 0, tokens // 2 + 1] = -torch.inf
    if steps > 6:
        emissions[steps - 2 :, -1] = F.pad(torch.zeros(2, 1), (0, tokens), value=-torch.inf)
    skips = torch.rand(batch_size, tokens, generator=generator) > 0.3
    skips[:, :1] = True
    return emissions, skips, (min(tokens, (steps + 1) // 2) - torch.arange(batch_size)).clamp(min=0)


def test_this_is_the_interpreter():
    assert type(ctc_triton.forward_kernel).__name__ == "InterpretedFunction"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", SIZES)
def test_forward_backward(sizes, dtype):
    emissions, skips, lengths = problem(*sizes, dtype)
    (total, occupancy), expected = (way.forward_backward(emissions, skips, lengths) for way in (ctc_triton, recursion))
    torch.testing.assert_close(total, expected[0])
    has_path = expected[0] > -torch.inf
    assert has_path.any()
    torch.testing.assert_close(occupancy[:, has_path], expected[1][:, has_path])
    total, none = ctc_triton.forward_backward(emissions, skips, lengths, False)
    torch.testing.assert_close(total, recursion.path_sum(emissions, skips, lengths))
    assert none is None


@pytest.mark.parametrize("sizes", SIZES[:3])
def test_forward_variables(sizes):
    emissions, skips, _ = problem(*sizes)
    start = torch.arange(sizes[1]) % (sizes[2] + 1)
    for got, expected in zip(
        ctc_triton.forward_variables(emissions, skips, start),
        recursion.forward_variables(emissions, skips, start),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("has_ties", [False, True])
def test_best_states(sizes, has_ties):
    emissions, skips, lengths = problem(*sizes)
    if has_ties:
        emissions = emissions.round()
    states, log_prob = ctc_triton.best_states(emissions, skips, lengths)
    expected = recursion.best_states(emissions, skips, lengths)
    assert torch.equal(log_prob, expected[1])
    has_path = log_prob > -torch.inf
    assert torch.equal(states[:, has_path], expected[0][:, has_path])


def test_forward_variables_keep_a_nan():
    emissions = torch.zeros(3, 2, 4)
    emissions[1, 0] = torch.nan
    blanks, tokens = ctc_triton.forward_variables(emissions, torch.ones(2, 3, dtype=torch.bool), torch.zeros(2).long())
    assert blanks[2, 0].isnan().all()
    assert not tokens[:, 1].isnan().any()
    total, _ = ctc_triton.forward_backward(emissions, torch.ones(2, 3, dtype=torch.bool), torch.tensor([3, 3]))
    assert total.isnan().tolist() == [True, False]


@pytest.mark.parametrize("vocab_size", [3, 4096, 10_007])
@pytest.mark.parametrize(
    ("dtype", "has_bias"),
    [(torch.float32, True), (torch.bfloat16, True), (torch.float16, True), (torch.float32, False)],
)
def test_softmax_of_chunk(vocab_size, dtype, has_bias):
    generator = torch.Generator().manual_seed(0)
    stride = -(-vocab_size // 64) * 64
    memory = torch.full((5, stride), torch.nan)  # what lies behind a row is not read
    logits, bias = memory[:, :vocab_size], torch.zeros(stride)
    logits.copy_(3 * torch.randn(5, vocab_size, generator=generator))
    if has_bias:
        bias[:vocab_size] = torch.randn(vocab_size, generator=generator)
        bias[0] = bias[2]
    logits[:, 1] = -torch.inf
    logits[1, 0] = logits[1, 2] = 19.0  # a tie: the lowest id is the rival
    own, scale = torch.randn(5, generator=generator), torch.rand(5, generator=generator) * 2.0**14
    own[2] = 200.0  # a sure model: the dense part vanishes
    scaled, normalizer, rival, strength = ctc_triton.softmax_of_chunk(
        logits, bias if has_bias else None, own, scale, dtype
    )
    logits = logits + bias[:vocab_size]
    everything = torch.cat((logits, own[:, None]), 1)
    torch.testing.assert_close(normalizer, everything.logsumexp(1))
    assert torch.equal(rival, logits.argmax(1))
    assert int(rival[1]) == 0
    probabilities = F.softmax(everything, 1)[:, :-1]
    torch.testing.assert_close(strength, probabilities.gather(1, rival[:, None])[:, 0])
    expected = (probabilities * scale[:, None]).scatter_(1, rival[:, None], 0.0)
    torch.testing.assert_close(scaled, expected.to(dtype), rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6)
    assert scaled.stride(0) == stride


@pytest.mark.parametrize("name", ctc_kernels._TRIALS)
def test_trials_go_well(name):
    ctc_kernels._TRIALS[name](CPU)


def test_a_kernel_with_wrong_numbers_is_found(monkeypatch):
    right = ctc_triton.forward_variables
    monkeypatch.setattr(ctc_triton, "forward_variables", lambda *args: tuple(1.001 * values for values in right(*args)))
    with pytest.raises(ArithmeticError, match="wrong numbers"):
        ctc_kernels._TRIALS["alignment"](CPU)


def test_launches_are_on_the_device_of_the_tensors(monkeypatch):
    """Triton launches on the current device. A stand-in for the context that makes a device current is watched."""
    entered, launched = [], []

    @contextlib.contextmanager
    def device_of(tensor):
        entered.append(tensor.device)
        yield
        entered.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for name in ("forward_kernel", "occupancy_kernel", "best_kernel", "back_kernel", "softmax_kernel"):
        kernel = getattr(ctc_triton, name)

        class Watched:
            def __init__(self, kernel, name):
                self.kernel, self.name = kernel, name

            def __getitem__(self, grid):
                launched.append((self.name, len(entered)))
                return self.kernel[grid]

        monkeypatch.setattr(ctc_triton, name, Watched(kernel, name))
    for trial in ctc_kernels._TRIALS.values():
        trial(CPU)
    assert {name for name, _ in launched} == {
        f"{n}_kernel" for n in ("forward", "occupancy", "best", "back", "softmax")
    }
    assert all(depth == 1 for _, depth in launched)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_whole_loss(monkeypatch, dtype):
    """Ragged rows, repeats, an empty and an infeasible target, through the kernels and through PyTorch."""
    generator = torch.Generator().manual_seed(0)
    lengths, targets = torch.tensor([11, 1, 7, 3]), [[1, 2, 2, 5], [], [3, 4], [1, 1, 1]]
    hidden = torch.randn(22, 6, generator=generator)
    weight, bias = torch.randn(70, 6, generator=generator), torch.randn(70, generator=generator)
    bias[69] = -torch.inf
    labels = torch.tensor([token for target in targets for token in target])
    target_lengths = torch.tensor([len(target) for target in targets])

    def run():
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (hidden, weight, bias)]
        output = linear_ctc_loss(
            *leaves,
            labels,
            None,
            target_lengths,
            cu_seqlens=F.pad(lengths.cumsum(0), (1, 0)).int(),
            chunk_tokens=5,
            kl_weight=0.0,
        )
        return output.loss.detach(), output.nll, *torch.autograd.grad(output.loss, leaves)

    expected = run()
    launches = []
    for name in ("forward_variables", "softmax_of_chunk"):
        kernel = getattr(ctc_triton, name)
        monkeypatch.setattr(ctc_triton, name, lambda *args, k=kernel, n=name: (launches.append(n), k(*args))[1])
    monkeypatch.setattr(ctc_alignment, "alignment_way", lambda device: ctc_triton)
    monkeypatch.setattr(ctc_head, "uses_triton", lambda device, kernel: True)
    got = run()
    assert launches.count("forward_variables") == 1
    assert launches.count("softmax_of_chunk") == (0 if dtype == torch.float32 else 5)
    torch.testing.assert_close(got[:2], expected[:2], rtol=1e-5, atol=1e-6)
    for one, other in zip(got[2:], expected[2:], strict=True):
        assert (one - other).norm() <= (1e-6 if dtype == torch.float32 else 5e-3) * other.norm()
