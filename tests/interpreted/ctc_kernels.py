"""The Triton kernels of the CTC head, run on the CPU by Triton's interpreter.

`tests/unit/ctc/test_ctc_triton.py` starts this file with TRITON_INTERPRET=1, which must be set before the kernels are
imported.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bnb_ds.ctc import alignment as ctc_alignment
from bnb_ds.ctc import head as ctc_head
from bnb_ds.ctc import triton as ctc_triton
from bnb_ds.ctc.loss import linear_ctc_loss

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy, in lanes not used


def test_this_is_the_interpreter():
    assert type(ctc_triton.forward_kernel).__name__ == "InterpretedFunction"


def plain_forward(emissions, may_skip, start):
    """The recursion over [T, R, S + 1] in PyTorch."""
    blank = torch.full_like(emissions[0], -torch.inf).scatter_(1, start[:, None], 0.0)
    token = torch.full_like(emissions[0, :, 1:], -torch.inf)
    blanks, tokens = [], []
    for emission in emissions:
        into_blank = torch.cat((blank[:, :1], torch.logaddexp(blank[:, 1:], token)), 1)
        into_token = torch.logaddexp(token, torch.where(may_skip, into_blank[:, :-1], blank[:, :-1]))
        blanks.append(into_blank)
        tokens.append(into_token)
        blank, token = into_blank + emission[:, :1], into_token + emission[:, 1:]
    return torch.stack(blanks), torch.stack(tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("steps", "rows", "tokens"), [(1, 1, 1), (9, 4, 5), (12, 2, 32), (20, 3, 33), (6, 1, 512)])
def test_forward_variables(steps, rows, tokens, dtype):
    generator = torch.Generator().manual_seed(0)
    emissions = torch.randn(steps, rows, tokens + 1, generator=generator, dtype=torch.float64).to(dtype)
    emissions[steps // 2, 0, tokens // 2 + 1] = -torch.inf
    may_skip = torch.rand(rows, tokens, generator=generator) > 0.3
    start = torch.arange(rows) % (tokens + 1)
    blanks, positions = torch.empty_like(emissions), torch.empty_like(emissions[..., 1:]).contiguous()
    ctc_triton.forward_variables(emissions, may_skip, start, blanks, positions)
    expected = plain_forward(emissions, may_skip, start)
    torch.testing.assert_close(blanks, expected[0])
    torch.testing.assert_close(positions, expected[1])


def test_forward_variables_keep_a_nan():
    emissions = torch.zeros(3, 2, 4)
    emissions[1, 0] = torch.nan
    blanks, tokens = torch.empty(3, 2, 4), torch.empty(3, 2, 3)
    ctc_triton.forward_variables(emissions, torch.ones(2, 3, dtype=torch.bool), torch.zeros(2).long(), blanks, tokens)
    assert blanks[2, 0].isnan().all()
    assert not tokens[:, 1].isnan().any()


@pytest.mark.parametrize("vocab_size", [3, 4096, 10_007])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_softmax_of_chunk(vocab_size, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5, vocab_size, generator=generator)
    logits[:, 1] = -torch.inf
    logits[1, 0] = logits[1, 2] = 9.0  # a tie: the lowest id is the rival
    own, scale = torch.randn(5, generator=generator), torch.rand(5, generator=generator) * 2.0**14
    own[2] = 200.0  # a sure model: the dense part vanishes
    scaled, normalizer, rival, strength = ctc_triton.softmax_of_chunk(logits, own, scale, dtype)
    everything = torch.cat((logits, own[:, None]), 1)
    torch.testing.assert_close(normalizer, everything.logsumexp(1))
    assert torch.equal(rival, logits.argmax(1))
    probabilities = F.softmax(everything, 1)[:, :-1]
    torch.testing.assert_close(strength, probabilities.gather(1, rival[:, None])[:, 0])
    expected = (probabilities * scale[:, None]).scatter_(1, rival[:, None], 0.0)
    torch.testing.assert_close(scaled, expected.to(dtype), rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6)


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
    for module in (ctc_alignment, ctc_head):
        monkeypatch.setattr(module, "uses_triton", lambda device: True)
    got = run()
    assert launches.count("forward_variables") == 1
    assert launches.count("softmax_of_chunk") == (0 if dtype == torch.float32 else 5)
    torch.testing.assert_close(got[:2], expected[:2], rtol=1e-5, atol=1e-6)
    for one, other in zip(got[2:], expected[2:], strict=True):
        assert (one - other).norm() <= (1e-6 if dtype == torch.float32 else 5e-3) * other.norm()
