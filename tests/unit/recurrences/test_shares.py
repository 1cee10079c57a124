"""exp of the logarithms of shares, which leaves out what no sum feels."""

from __future__ import annotations

import math

import pytest
import torch

from bnb_ds.recurrences.host import exp_of_shares_


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
