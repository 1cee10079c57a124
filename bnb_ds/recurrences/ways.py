"""Chooses the kernels of recurrences on a GPU. Each is tried once per device on a tiny problem, and the choice is said.

That Triton is installed, or that a GPU is new enough, proves little: releases of Triton lack functions, a host may lack
the C compiler that Triton calls, and a driver may be too old. So a kernel runs and is compared with PyTorch before
anything relies on it. Where Triton's does not work, that of `bnb_ds.recurrences.cuda` is tried; where none does,
`bnb_ds.recurrences.host` is the last resort.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bnb_ds.common.trials import fault_of
from bnb_ds.errors import ConfigError

TRITON, CUDA = "Triton", "CUDA C++"
Trials = dict[str, Callable[[torch.device], None]]

_NEEDED_CAPABILITY = (7, 0)
_SWITCH = "BNB_KERNELS"
_NAMES = {"triton": TRITON, "cuda": CUDA}


@dataclass(frozen=True)
class Choice:
    """Which kernels run how on one device.

    Attributes:
        ways: for each kernel `TRITON`, `CUDA` or None.
        text: one line about it, for a run's log.
    """

    ways: dict[str, str | None]
    text: str


def choose(what: str, device: torch.device, in_triton: Trials, in_cuda: Trials, others: dict[str, str]) -> Choice:
    """Try all kernels of a loss on a device.

    Args:
        what: the loss.
        device: any.
        in_triton: by the kernel's name, what imports it, runs it and raises if its numbers are wrong.
        in_cuda: the same, of those kernels that there are in CUDA C++ too.
        others: how a kernel's work is done without a kernel; absent: on the host.

    Raises:
        ConfigError: an unknown kind of kernels in BNB_KERNELS, or a trial after which the GPU does nothing any more.
    """
    if device.type != "cuda":
        return Choice(dict.fromkeys(in_triton), f"{what} in batched PyTorch ({device.type})")
    allowed = _allowed()
    faults = {name: {TRITON: fault} for name, fault in _faults_of_triton(device, in_triton, allowed).items()}
    ways: dict[str, str | None] = {}
    for name, of_ways in faults.items():
        ways[name] = TRITON if of_ways[TRITON] is None else None
        if ways[name] is None and name in in_cuda:
            of_ways[CUDA] = _fault_of_cuda(device, name, in_cuda[name], allowed)
            ways[name] = CUDA if of_ways[CUDA] is None else None
    return Choice(ways, _described(what, device, ways, faults, others))


def _allowed() -> set[str]:
    given = os.environ.get(_SWITCH, "").strip() or ",".join(_NAMES)
    names = [] if given == "none" else [name.strip() for name in given.split(",")]
    if not set(names) <= set(_NAMES):
        raise ConfigError(f"{_SWITCH} is {given!r}: give none, or some of {','.join(_NAMES)}")
    return {_NAMES[name] for name in names}


def _faults_of_triton(device: torch.device, trials: Trials, allowed: set[str]) -> dict[str, str | None]:
    """Why each kernel cannot run in Triton on a GPU; None for one that can."""
    if TRITON not in allowed:
        return dict.fromkeys(trials, f"{_SWITCH} leaves out Triton")
    capability = torch.cuda.get_device_capability(device)
    if capability < _NEEDED_CAPABILITY:
        return dict.fromkeys(trials, f"capability {capability[0]}.{capability[1]}, below 7.0")
    try:
        version = importlib.import_module("triton").__version__
    except Exception as error:  # a broken installation may raise anything
        return dict.fromkeys(trials, f"triton cannot be imported: {type(error).__name__}: {error}")
    found = {}
    for name, trial in trials.items():
        fault = _fault_of(trial, device, f"Triton's kernel of the {name}", f"set {_SWITCH}=cuda")
        found[name] = None if fault is None else f"Triton {version}: {fault}"
    return found


def _fault_of_cuda(
    device: torch.device, name: str, trial: Callable[[torch.device], None], allowed: set[str]
) -> str | None:
    if CUDA not in allowed:
        return f"{_SWITCH} leaves out CUDA C++"
    fault = _fault_of(trial, device, f"the kernel of the {name} in CUDA C++", f"set {_SWITCH}=none")
    return None if fault is None else f"CUDA C++: {fault}"


def _fault_of(trial: Callable[[torch.device], None], device: torch.device, what: str, way_out: str) -> str | None:
    """As `fault_of`. After some faults, such as an illegal address, a process can use its GPU no more."""
    fault = fault_of(functools.partial(trial, device), what, way_out)
    if fault is not None and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize(device)
        except RuntimeError:
            raise ConfigError(f"{what} has made {device} unusable for this process ({fault}): {way_out}") from None
    return fault


def _described(
    what: str,
    device: torch.device,
    ways: dict[str, str | None],
    faults: dict[str, dict[str, str | None]],
    others: dict[str, str],
) -> str:
    """One line: which kernels run in Triton, which do not, and why."""
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    place = f"{name}: capability {capability[0]}.{capability[1]}"
    rest = [kernel for kernel, way in ways.items() if way != TRITON]
    if not rest:
        return f"{what} in Triton kernels ({place})"
    of_fault: dict[str, list[str]] = {}
    for kernel in rest:
        for fault in faults[kernel].values():
            if fault is not None:
                of_fault.setdefault(fault, []).append(kernel)
    reasons = "; ".join(f"{', '.join(kernels)}: {fault}" for fault, kernels in of_fault.items())
    how = {kernel: f"in {CUDA}" if ways[kernel] == CUDA else others.get(kernel, "on the host") for kernel in rest}
    instead = ", ".join(f"{kernel} {way}" for kernel, way in how.items())
    return f"{what} {'partly' if len(rest) < len(ways) else 'not'} in Triton kernels: {instead} ({place}; {reasons})"
