"""The kernels of CTC: which there are, how each is tried, and which runs. `bnb_ds.recurrences.ways` chooses."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from bnb_ds.common.trials import expect
from bnb_ds.ctc import native, recursion
from bnb_ds.recurrences import cuda
from bnb_ds.recurrences.host import through_host
from bnb_ds.recurrences.ways import CUDA, TRITON, Choice, Trials, choose

_LOG = logging.getLogger(__name__)
_TOLERANCE = 1e-4


def uses_triton(device: torch.device, kernel: str) -> bool:
    """Whether a kernel of `_TRIALS` runs in Triton on ``device``, because it is a GPU and the trial went well."""
    return device.type == "cuda" and _choose(device).ways[kernel] == TRITON


def alignment_way(device: torch.device) -> ModuleType:
    """The module whose ``forward_backward`` runs on ``device``."""
    if device.type == "cpu":
        return recursion
    if uses_triton(device, "alignment"):
        from bnb_ds.ctc import triton

        return triton
    return native


def best_states(emissions_TBK: Tensor, skips_BS: Tensor, target_lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """`bnb_ds.ctc.recursion.best_states`, by a kernel or on the host."""
    problem, device = (emissions_TBK, skips_BS, target_lengths_B), emissions_TBK.device
    if uses_triton(device, "best path"):
        from bnb_ds.ctc import triton

        return triton.best_states(*problem)
    if device.type == "cuda" and _choose(device).ways["best path"] == CUDA:
        return _best_states_in_cuda(*problem)
    states_TB, log_prob_B = through_host(recursion.best_states, *problem)
    return states_TB, log_prob_B


def _best_states_in_cuda(emissions_TBK: Tensor, skips_BS: Tensor, target_lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    score_BX, states_of = cuda.best_states_of_ctc(emissions_TBK, skips_BS)
    last_B, log_prob_B = recursion.last_states(score_BX, target_lengths_B)
    return states_of(last_B), log_prob_B


def description(device: torch.device) -> str:
    """One line about the choice, for a run's log."""
    return _choose(device).text


@functools.cache
def _choose(device: torch.device) -> Choice:
    others = {"alignment": "by torch's ctc_loss", "softmax": "in batched PyTorch"}
    choice = choose("CTC", device, _TRIALS, _TRIALS_IN_CUDA, others)
    _LOG.info("%s", choice.text)
    return choice


def _problem(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Emissions [T, B, K], skips and target lengths: ragged, with repeats; no random number is drawn."""
    numbers = torch.arange(9 * 2 * 4, dtype=torch.float32, device=device).mul(1.7).sin().view(9, 2, 4)
    emissions_TBK = (2 * numbers).log_softmax(2)
    emissions_TBK[6:, 1] = torch.tensor([0.0, *[-torch.inf] * 3], device=device)
    skips_BS = torch.tensor([[True, True, False], [True, False, True]], device=device)
    return emissions_TBK, skips_BS, torch.tensor([3, 2], device=device)


def _try_alignment(device: torch.device) -> None:
    from bnb_ds.ctc import triton as kernels

    problem = _problem(device)
    for name, got, expected in zip(
        ("sum", "occupancy"), kernels.forward_backward(*problem), recursion.forward_backward(*problem), strict=True
    ):
        expect(name, got, expected, _TOLERANCE)
    expect("sum", kernels.forward_backward(*problem, False)[0], recursion.path_sum(*problem), _TOLERANCE)


def _try_best_path(device: torch.device) -> None:
    from bnb_ds.ctc import triton as kernels

    _compare_best_path(kernels.best_states, device)


def _compare_best_path(best_states: Callable[..., tuple[Tensor, Tensor]], device: torch.device) -> None:
    problem = _problem(device)
    states, log_prob = best_states(*problem)
    expected = recursion.best_states(*problem)
    expect("path", states, expected[0], 0.0)
    expect("log-probability", log_prob, expected[1], _TOLERANCE)


def _try_softmax(device: torch.device) -> None:
    from bnb_ds.ctc import triton as kernels

    logits_CV = torch.arange(3 * 80, dtype=torch.float32, device=device).mul(1.7).sin().mul(4).view(3, 80)[:, :70]
    bias_V = torch.arange(80, dtype=torch.float32, device=device).cos()
    own_C, scale_C = torch.tensor([0.0, -torch.inf, 9.0], device=device), torch.tensor([1.0, 3.0, 0.5], device=device)
    scaled, normalizer, rival, strength = kernels.softmax_of_chunk(logits_CV, bias_V, own_C, scale_C, torch.float16)
    every = torch.cat((logits_CV + bias_V[:70], own_C[:, None]), 1)
    softmax_CV = every.softmax(1)[:, :70]
    best_C1 = softmax_CV.argmax(1, keepdim=True)
    expect("normalizer", normalizer, every.logsumexp(1), _TOLERANCE)
    expect("rival", rival, best_C1[:, 0], 0.0)
    expect("strength", strength, softmax_CV.gather(1, best_C1)[:, 0], _TOLERANCE)
    expect("softmax", scaled, softmax_CV.scatter(1, best_C1, 0.0) * scale_C[:, None], 2e-3)


_TRIALS: Trials = {"alignment": _try_alignment, "best path": _try_best_path, "softmax": _try_softmax}
_TRIALS_IN_CUDA: Trials = {"best path": functools.partial(_compare_best_path, _best_states_in_cuda)}
