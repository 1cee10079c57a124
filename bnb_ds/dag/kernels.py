"""Chooses the kernels of the dynamic programme over graphs; tried and said as those of `bnb_ds.ctc.kernels`."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from bnb_ds.common.trials import expect
from bnb_ds.ctc.kernels import Trials, described, faults_of_triton

_LOG = logging.getLogger(__name__)
_TOLERANCE = 1e-4
_SLOTS = 80  # more than a tile


def uses_triton(device: torch.device, kernel: str) -> bool:
    """Whether a kernel of `_TRIALS` runs in Triton on ``device``, because it is a GPU and the trial went well."""
    return device.type == "cuda" and _choose(device)[0][kernel] is None


def description(device: torch.device) -> str:
    """One line about the choice, for a run's log."""
    return _choose(device)[1]


@functools.cache
def _choose(device: torch.device) -> tuple[dict[str, str | None], str]:
    faults = faults_of_triton(device, _TRIALS)
    text = described("DAG", device, faults, {})
    _LOG.info("%s", text)
    return faults, text


def _problem(device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
    """The fields of `bnb_ds.dag.alignment.Problem` for a target of three tokens; no random number is drawn.

    Such a path has one free slot. So the log-probability [L] of each path, by this slot, is known without a programme.
    """
    slot_L = torch.arange(_SLOTS, device=device)
    emissions_SBL = torch.arange(3.0 * _SLOTS, device=device).mul(1.7).sin().view(3, 1, _SLOTS) - 2
    scores_LL = torch.arange(float(_SLOTS**2), device=device).mul(2.3).cos().mul(3).view(_SLOTS, _SLOTS)
    links_LL = scores_LL.masked_fill(slot_L[:, None] >= slot_L, -torch.inf)
    links_LL = torch.where(slot_L[:, None] < slot_L, links_LL.log_softmax(1), -torch.inf)
    last_slot_B, last_step_B = torch.tensor([_SLOTS - 1], device=device), torch.tensor([2], device=device)
    paths_L = emissions_SBL[0, 0, 0] + links_LL[0] + emissions_SBL[1, 0] + links_LL[:, -1] + emissions_SBL[2, 0, -1]
    is_infeasible_B = torch.zeros(1, dtype=torch.bool, device=device)
    return (emissions_SBL, links_LL[None], last_slot_B, last_step_B, is_infeasible_B), paths_L


def _try_alignment(device: torch.device) -> None:
    from bnb_ds.dag.triton import forward_backward

    problem, paths_L = _problem(device)
    nll_B, slots_BLS, links_BLL = forward_backward(*problem)
    share_L = paths_L.softmax(0)
    expect("loss", nll_B[0], -paths_L.logsumexp(0), _TOLERANCE)
    expect("slots", slots_BLS[0, :, 1], share_L, _TOLERANCE)
    expect("links", links_BLL[0, 0, :-1], share_L[:-1], _TOLERANCE)
    expect("links", links_BLL[0, :, -1], share_L, _TOLERANCE)


def _try_best_path(device: torch.device) -> None:
    from bnb_ds.dag.triton import best_path

    problem, paths_L = _problem(device)
    path_BL, log_prob_B = best_path(*problem)
    expected_L = torch.full_like(path_BL[0], -1)
    expected_L[0], expected_L[-1] = 0, 2
    expect("path", path_BL[0], expected_L.scatter(0, paths_L.argmax(0, keepdim=True), 1), 0.0)
    expect("log-probability", log_prob_B[0], paths_L.amax(), _TOLERANCE)


_TRIALS: Trials = {"alignment": _try_alignment, "best path": _try_best_path}
