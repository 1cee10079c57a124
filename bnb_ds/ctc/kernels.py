"""Chooses the kernels of the CTC head, once per device and by the device's capability, and logs the choice."""

from __future__ import annotations

import functools
import importlib.util
import logging

import torch

_LOG = logging.getLogger(__name__)
_NEEDED_CAPABILITY = (8, 0)


def uses_triton(device: torch.device) -> bool:
    """Whether the CTC head on ``device`` uses the Triton kernels rather than batched PyTorch."""
    return device.type == "cuda" and _choose(device)[0]


def description(device: torch.device) -> str:
    """One line about the choice, for a run's log."""
    return _choose(device)[1]


@functools.cache
def _choose(device: torch.device) -> tuple[bool, str]:
    chosen, text = _judge(device)
    _LOG.info("%s", text)
    return chosen, text


def _judge(device: torch.device) -> tuple[bool, str]:
    if device.type != "cuda":
        return False, f"CTC in batched PyTorch ({device.type})"
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if capability < _NEEDED_CAPABILITY:
        return False, f"CTC in batched PyTorch ({name}: capability {capability[0]}.{capability[1]}, below 8.0)"
    if importlib.util.find_spec("triton") is None:
        return False, f"CTC in batched PyTorch ({name}: triton is not installed)"
    return True, f"CTC in Triton kernels ({name}: capability {capability[0]}.{capability[1]})"
