"""Chooses the kernels of CTC. Each is tried once per device on a tiny problem, and the choice is logged.

That Triton is installed, or that a GPU is new enough, proves little: releases of Triton lack functions, a host may lack
the C compiler that Triton calls, and a driver may be too old. So a kernel runs and is compared with PyTorch before
anything relies on it.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from bnb_ds.common.trials import expect, fault_of
from bnb_ds.ctc import native, recursion
from bnb_ds.recurrences.host import through_host

_LOG = logging.getLogger(__name__)
_NEEDED_CAPABILITY = (7, 0)
_TOLERANCE = 1e-4

Trials = dict[str, Callable[[torch.device], None]]


def uses_triton(device: torch.device, kernel: str) -> bool:
    """Whether a kernel of `_TRIALS` runs in Triton on ``device``, because it is a GPU and the trial went well."""
    return device.type == "cuda" and _choose(device)[0][kernel] is None


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
    problem = (emissions_TBK, skips_BS, target_lengths_B)
    if uses_triton(emissions_TBK.device, "best path"):
        from bnb_ds.ctc import triton

        return triton.best_states(*problem)
    states_TB, log_prob_B = through_host(recursion.best_states, *problem)
    return states_TB, log_prob_B


def description(device: torch.device) -> str:
    """One line about the choice, for a run's log."""
    return _choose(device)[1]


@functools.cache
def _choose(device: torch.device) -> tuple[dict[str, str | None], str]:
    faults = faults_of_triton(device, _TRIALS)
    others = {"alignment": "by torch's ctc_loss", "softmax": "in batched PyTorch"}
    text = described("CTC", device, faults, others)
    _LOG.info("%s", text)
    return faults, text


def faults_of_triton(device: torch.device, trials: Trials) -> dict[str, str | None]:
    """Why each kernel cannot run in Triton on ``device``; None for one that can.

    Args:
        device: any.
        trials: by the kernel's name, what imports it, runs it and raises if its numbers are wrong.
    """
    if device.type != "cuda":
        return dict.fromkeys(trials, device.type)
    capability = torch.cuda.get_device_capability(device)
    if capability < _NEEDED_CAPABILITY:
        return dict.fromkeys(trials, f"capability {capability[0]}.{capability[1]}, below 7.0")
    try:
        version = importlib.import_module("triton").__version__
    except Exception as error:  # a broken installation may raise anything
        return dict.fromkeys(trials, f"triton cannot be imported: {type(error).__name__}: {error}")
    faults = {name: fault_of(functools.partial(trial, device)) for name, trial in trials.items()}
    return {name: None if fault is None else f"Triton {version}: {fault}" for name, fault in faults.items()}


def described(what: str, device: torch.device, faults: dict[str, str | None], others: dict[str, str]) -> str:
    """One line: which kernels run in Triton, which do not, and why.

    Args:
        what: the loss.
        device: where.
        faults: as `faults_of_triton` returns them.
        others: how a kernel's work is done instead; absent: on the host.
    """
    if device.type != "cuda":
        return f"{what} in batched PyTorch ({device.type})"
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    place = f"{name}: capability {capability[0]}.{capability[1]}"
    failed = {kernel: fault for kernel, fault in faults.items() if fault is not None}
    if not failed:
        return f"{what} in Triton kernels ({place})"
    reasons = "; ".join(
        f"{', '.join(kernel for kernel in failed if failed[kernel] == fault)}: {fault}"
        for fault in dict.fromkeys(failed.values())
    )
    instead = ", ".join(f"{kernel} {others.get(kernel, 'on the host')}" for kernel in failed)
    return (
        f"{what} {'partly' if len(failed) < len(faults) else 'not'} in Triton kernels: {instead} ({place}; {reasons})"
    )


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

    problem = _problem(device)
    states, log_prob = kernels.best_states(*problem)
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
