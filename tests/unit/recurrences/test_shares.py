"""exp of the logarithms of shares, which leaves out what no sum feels, and logsumexp by it."""

from __future__ import annotations

import math

import pytest
import torch

from bnb_ds.recurrences.host import exp_of_shares_, logsumexp_


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_exp_where_a_sum_feels_it(dtype):
    eps = torch.finfo(dtype).eps
    least = 3 * math.log(eps)
    logs = torch.tensor([0.0, -1e-9, -1.0, least / 2, least + 0.1, least, least - 0.1, -1e3, -math.inf], dtype=dtype)
    exact = logs.double().exp()
    shares = exp_of_shares_(logs)
    assert shares.dtype == dtype
    assert shares[5:].tolist() == [0.0] * 4
    torch.testing.assert_close(shares[:5].double(), exact[:5], rtol=4 * eps, atol=0)
    assert exp_of_shares_(torch.tensor([math.nan], dtype=dtype)).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [0, 1])
def test_equals_logsumexp(dtype, dim):
    """Also where all numbers are -inf, far below 0, or far apart; a NaN stays one."""
    logs = 50 * torch.randn(4, 4, dtype=dtype, generator=torch.Generator().manual_seed(0)) - 900
    logs[1], logs[:, 2], logs[3, 3] = -math.inf, -math.inf, math.nan
    expected = logs.double().logsumexp(dim)
    got = logsumexp_(logs, dim)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=0, equal_nan=True)
