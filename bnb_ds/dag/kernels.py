"""The kernels of the dynamic programme over graphs: which there are, how each is tried, and which runs.

`bnb_ds.recurrences.ways` chooses.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from bnb_ds.common.trials import expect
from bnb_ds.dag.programme import Launch, best_of_each_length, best_path, forward_backward
from bnb_ds.recurrences import cuda
from bnb_ds.recurrences.ways import CUDA, TRITON, Choice, Trials, choose

_LOG = logging.getLogger(__name__)
_TOLERANCE = 1e-4
_SLOTS = 80  # more than a tile


def launch_of(device: torch.device, kernel: str) -> Launch | None:
    """What launches a kernel of `_TRIALS` on ``device``; None if none works there."""
    if device.type != "cuda":
        return None
    way = _choose(device).ways[kernel]
    if way == TRITON:
        from bnb_ds.dag import triton

        return triton.launch
    return cuda.launch_of_graph if way == CUDA else None


def description(device: torch.device) -> str:
    """One line about the choice, for a run's log."""
    return _choose(device).text


@functools.cache
def _choose(device: torch.device) -> Choice:
    choice = choose("DAG", device, _TRIALS, _TRIALS_IN_CUDA, {})
    _LOG.info("%s", choice.text)
    return choice


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


def _try_alignment(launch: Launch, device: torch.device) -> None:
    problem, paths_L = _problem(device)
    nll_B, slots_BLS, links_BLL = forward_backward(launch, *problem)
    assert slots_BLS is not None
    assert links_BLL is not None
    share_L = paths_L.softmax(0)
    expect("loss", nll_B[0], -paths_L.logsumexp(0), _TOLERANCE)
    expect("slots", slots_BLS[0, :, 1], share_L, _TOLERANCE)
    expect("links", links_BLL[0, 0, :-1], share_L[:-1], _TOLERANCE)
    expect("links", links_BLL[0, :, -1], share_L, _TOLERANCE)


def _try_best_path(launch: Launch, device: torch.device) -> None:
    problem, paths_L = _problem(device)
    path_BL, log_prob_B = best_path(launch, *problem)
    expected_L = torch.full_like(path_BL[0], -1)
    expected_L[0], expected_L[-1] = 0, 2
    best_L1 = paths_L.argmax(0, keepdim=True)
    expect("path", path_BL[0], expected_L.scatter(0, best_L1, 1), 0.0)
    expect("log-probability", log_prob_B[0], paths_L.amax(), _TOLERANCE)
    # The same by the search over all lengths, without emissions.
    _, links_BLL, last_B, *_ = problem
    ways_L = links_BLL[0, 0] + links_BLL[0, :, -1]
    at_end_BM, path_of = best_of_each_length(launch, torch.zeros_like(links_BLL[:, 0]), links_BLL, last_B, 3)
    slots_BL = path_of(torch.full_like(last_B, 3))
    expect("log-probability of a length", at_end_BM[0, 2], ways_L.amax(), _TOLERANCE)
    expect("slots of a length", slots_BL[0, :3], torch.stack((last_B[0] * 0, ways_L.argmax(), last_B[0])), 0.0)


def _in_triton(trial: Callable[[Launch, torch.device], None], device: torch.device) -> None:
    from bnb_ds.dag import triton

    trial(triton.launch, device)


_BOTH = {"alignment": _try_alignment, "best path": _try_best_path}
_TRIALS: Trials = {name: functools.partial(_in_triton, trial) for name, trial in _BOTH.items()}
_TRIALS_IN_CUDA: Trials = {name: functools.partial(trial, cuda.launch_of_graph) for name, trial in _BOTH.items()}
