"""Fused LayerNorm and optimizer kernels: NVIDIA apex if it works, otherwise torch and DeepSpeed.

Only this module imports apex. A successful import proves little: the package ``apex`` on PyPI is a different program
(the Pyramid toolkit), and NVIDIA apex without its compiled extensions fails only when its classes are used. So this
module checks the package's metadata and creates an object of each class.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnb_ds.errors import ConfigError

_NEVER_CLIP = 1e30


@dataclass(frozen=True)
class Apex:
    """The result of the search for NVIDIA apex."""

    #: True if its kernels work
    usable: bool
    #: for the user
    description: str


def find_apex() -> Apex:
    """Check whether NVIDIA apex is installed and works.

    Raises:
        ConfigError: the package ``apex`` of PyPI is installed. Libraries would mistake it for NVIDIA apex.
    """
    _refuse_other_apex()
    try:
        normalization = importlib.import_module("apex.normalization")
        optimizers = importlib.import_module("apex.optimizers")
    except ImportError as error:
        if error.name == "apex":
            return Apex(False, "NVIDIA apex is not installed")
        return Apex(False, f"NVIDIA apex is installed without its layers and optimizers ({error})")
    try:
        normalization.FusedLayerNorm(8)
        optimizers.FusedAdam([nn.Parameter(torch.zeros(1))])
    except (ImportError, RuntimeError) as error:
        return Apex(False, f"NVIDIA apex is installed without its CUDA extensions ({error})")
    return Apex(True, "NVIDIA apex")


def _refuse_other_apex() -> None:
    try:
        summary = importlib.metadata.metadata("apex")["Summary"] or ""
    except importlib.metadata.PackageNotFoundError:
        return
    if "NVIDIA" not in summary:
        raise ConfigError(
            f"the installed package 'apex' ({summary.strip()}) is not NVIDIA apex; run `pip uninstall apex`; for fused"
            " kernels, build NVIDIA apex as setup.py describes"
        )


def fuse_layer_norms(model: nn.Module, device: torch.device) -> str:
    """Replace every ``nn.LayerNorm`` by apex's ``FusedLayerNorm`` if apex works and the device is a GPU.

    Parameters and their names stay the same. Returns a description of the LayerNorm in use.
    """
    apex = find_apex()
    if device.type != "cuda":
        return "torch LayerNorm"
    if not apex.usable:
        return f"torch LayerNorm ({apex.description})"
    fused_layer_norm = importlib.import_module("apex.normalization").FusedLayerNorm
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.LayerNorm:
                replacement = fused_layer_norm(child.normalized_shape, eps=child.eps)
                replacement.weight, replacement.bias = child.weight, child.bias
                setattr(parent, name, replacement)
    return "apex FusedLayerNorm"


def choose_optimizer(
    kind: str, params: dict[str, Any], device: torch.device
) -> tuple[Callable[[Iterable[Any]], torch.optim.Optimizer], str]:
    """Choose the fastest implementation of an optimizer that works on this device.

    Args:
        kind: ``AdamW``, ``Adam`` or ``Lamb``, as in the DeepSpeed JSON.
        params: ``lr``, ``betas``, ``eps``, ``weight_decay``.
        device: device of the parameters.

    Returns:
        A function that creates the optimizer from parameter groups, and a description of the optimizer.

    Raises:
        ConfigError: Lamb on a CPU. Only CUDA kernels exist for it.
    """
    apex = find_apex() if device.type == "cuda" else Apex(False, "no CUDA device")
    if kind == "Lamb":
        return _choose_lamb(params, apex, device)
    if apex.usable:
        fused_adam = importlib.import_module("apex.optimizers").FusedAdam
        adam_w_mode = kind == "AdamW"
        return lambda groups: fused_adam(groups, adam_w_mode=adam_w_mode, **params), f"apex FusedAdam ({kind})"
    optimizer_class = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam}[kind]
    return lambda groups: optimizer_class(groups, fused=True, **params), f"torch {kind}, fused"


def _choose_lamb(
    params: dict[str, Any], apex: Apex, device: torch.device
) -> tuple[Callable[[Iterable[Any]], torch.optim.Optimizer], str]:
    if apex.usable:
        fused_lamb = importlib.import_module("apex.optimizers").FusedLAMB
        # The engine clips gradients. By default, apex would clip them again, at norm 1.
        return lambda groups: fused_lamb(groups, max_grad_norm=_NEVER_CLIP, **params), "apex FusedLAMB"
    if device.type == "cuda":
        from deepspeed.ops.lamb import FusedLamb

        return lambda groups: FusedLamb(groups, **params), "DeepSpeed FusedLamb"
    raise ConfigError("optimizer.type Lamb needs a CUDA device; use AdamW on a CPU")
