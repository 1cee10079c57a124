"""Fused LayerNorm and optimizer kernels: NVIDIA apex if it works, otherwise torch and DeepSpeed.

Only this module imports apex. A successful import proves little: the package ``apex`` on PyPI is a different program
(the Pyramid toolkit), and NVIDIA apex without its compiled extensions, or with those for another GPU or torch, fails
only when its classes are used. So this module checks the package's metadata, and runs each kernel on a tiny problem
beside torch before it relies on it. The same holds for DeepSpeed's optimizers, which are compiled on first use.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnb_ds.common.trials import expect, fault_of
from bnb_ds.errors import ConfigError

Build = Callable[[Iterable[Any]], torch.optim.Optimizer]

_NEVER_CLIP = 1e30
_NOT_INSTALLED = "NVIDIA apex is not installed"
_NO_DEVICE = "no CUDA device"


@dataclass(frozen=True)
class Apex:
    """The result of the search for NVIDIA apex."""

    #: True if its kernels work
    usable: bool
    #: for the user
    description: str

    @property
    def is_broken(self) -> bool:
        """Whether it is there and does not work."""
        return not self.usable and self.description not in (_NOT_INSTALLED, _NO_DEVICE)


def find_apex(device: torch.device) -> Apex:
    """Check whether NVIDIA apex is installed and works on a device.

    Raises:
        ConfigError: the package ``apex`` of PyPI is installed. Libraries would mistake it for NVIDIA apex.
    """
    _refuse_other_apex()
    try:
        normalization = importlib.import_module("apex.normalization")
        optimizers = importlib.import_module("apex.optimizers")
    except ImportError as error:
        if error.name == "apex":
            return Apex(False, _NOT_INSTALLED)
        return Apex(False, f"NVIDIA apex is installed without its layers and optimizers ({error})")
    except Exception as error:  # extensions for another torch raise anything when they are loaded
        return Apex(False, f"NVIDIA apex cannot be imported ({type(error).__name__}: {error})")
    try:
        normalization.FusedLayerNorm(8)
        optimizers.FusedAdam([nn.Parameter(torch.zeros(1))])
    except (ImportError, RuntimeError) as error:
        return Apex(False, f"NVIDIA apex is installed without its CUDA extensions ({error})")

    def trial() -> None:
        _try_layer_norm(normalization.FusedLayerNorm, device)
        _try_adam(lambda groups: optimizers.FusedAdam(groups, lr=0.1, adam_w_mode=True, weight_decay=0.1), device)
        _try_lamb(lambda groups: optimizers.FusedLAMB(groups, lr=0.1, max_grad_norm=_NEVER_CLIP), device)

    remove = "uninstall apex, or build it for this torch"
    fault = fault_of(trial, "NVIDIA apex", remove) if device.type == "cuda" else None  # its kernels are for GPUs alone
    return Apex(True, "NVIDIA apex") if fault is None else Apex(False, f"NVIDIA apex does not work here ({fault})")


def _try_layer_norm(layer_class: type[nn.Module], device: torch.device) -> None:
    values, signal = torch.arange(48.0, device=device).mul(1.7).sin().view(2, 3, 8)
    results = []
    for layer in (layer_class(8).to(device), nn.LayerNorm(8, device=device)):
        given = values.clone().requires_grad_()
        with torch.enable_grad():
            got = layer(given)
            results.append((got.detach(), *torch.autograd.grad(got, [given, *layer.parameters()], signal)))
    for name, got, expected in zip(("layer norm", "gradient", "of weight", "of bias"), *results, strict=True):
        expect(name, got, expected, 1e-4)


def _after_a_step(build: Build, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A parameter before and after one step of an optimizer, and its gradient."""
    parameter = nn.Parameter(torch.arange(12.0, device=device).mul(1.7).sin().add(2))
    before = parameter.detach().clone()
    parameter.grad = torch.arange(12.0, device=device).cos()
    build([parameter]).step()
    return before, parameter.detach(), parameter.grad


def _try_adam(build: Build, device: torch.device) -> None:
    """``build`` makes AdamW with the learning rate 0.1 and the weight decay 0.1."""
    got = _after_a_step(build, device)[1]
    expected = _after_a_step(lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.1), device)[1]
    expect("step of AdamW", got, expected, 1e-4)


def _try_lamb(build: Build, device: torch.device) -> None:
    """The first step is against the gradient's sign. How far it goes, implementations see differently."""
    before, after, gradient = _after_a_step(build, device)
    step = after - before
    if not bool(step.isfinite().all()) or not bool(((step != 0) & (step.abs() < 1)).all()):
        raise ArithmeticError("wrong numbers (size of a step of Lamb)")
    is_large = gradient.abs() > 0.1
    expect("step of Lamb", step.sign()[is_large], -gradient.sign()[is_large], 0.0)


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

    Parameters and their names stay the same. Norms without a bias, as ModernBERT has them, stay torch's. Returns a
    description of the LayerNorm in use.
    """
    apex = find_apex(device)
    if device.type != "cuda":
        return "torch LayerNorm"
    if not apex.usable:
        return f"torch LayerNorm ({apex.description})"
    fused_layer_norm = importlib.import_module("apex.normalization").FusedLayerNorm
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.LayerNorm and child.bias is not None:  # apex's kernel needs one
                replacement = fused_layer_norm(child.normalized_shape, eps=child.eps)
                replacement.weight, replacement.bias = child.weight, child.bias
                setattr(parent, name, replacement)
    return "apex FusedLayerNorm"


def choose_optimizer(kind: str, params: dict[str, Any], device: torch.device) -> tuple[Build, str]:
    """Choose the fastest implementation of an optimizer that works on this device.

    Args:
        kind: ``AdamW``, ``Adam`` or ``Lamb``, as in the DeepSpeed JSON.
        params: ``lr``, ``betas``, ``eps``, ``weight_decay``.
        device: device of the parameters.

    Returns:
        A function that creates the optimizer from parameter groups, and a description of the optimizer.

    Raises:
        ConfigError: Lamb on a CPU, because only CUDA kernels exist for it; or Lamb where none of them works.
    """
    apex = find_apex(device) if device.type == "cuda" else Apex(False, _NO_DEVICE)
    if kind == "Lamb":
        return _choose_lamb(params, apex, device)
    if apex.usable:
        fused_adam = importlib.import_module("apex.optimizers").FusedAdam
        adam_w_mode = kind == "AdamW"
        return lambda groups: fused_adam(groups, adam_w_mode=adam_w_mode, **params), f"apex FusedAdam ({kind})"
    reason = f" ({apex.description})" if apex.is_broken else ""
    return torch_optimizer(kind, params), f"torch {kind}, fused{reason}"


def torch_optimizer(kind: str, params: dict[str, Any]) -> Build:
    """A function that creates torch's fused ``AdamW`` or ``Adam`` from parameter groups."""
    optimizer_class = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam}[kind]
    return lambda groups: optimizer_class(groups, fused=True, **params)


def fault_of_cpu_adam() -> str | None:
    """Why DeepSpeed's CPUAdam, which updates an offloaded state, cannot be used here; None if it can.

    DeepSpeed compiles it on first use, with the host's C++ compiler.
    """

    def trial() -> None:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        _try_adam(lambda groups: DeepSpeedCPUAdam(groups, lr=0.1, weight_decay=0.1), torch.device("cpu"))

    # DeepSpeed compiles under a lock, which a process that was killed leaves behind.
    return fault_of(trial, "DeepSpeed's CPUAdam", "remove torch's folder of extensions (TORCH_EXTENSIONS_DIR)")


def _choose_lamb(params: dict[str, Any], apex: Apex, device: torch.device) -> tuple[Build, str]:
    if apex.usable:
        fused_lamb = importlib.import_module("apex.optimizers").FusedLAMB
        # The engine clips gradients. By default, apex would clip them again, at norm 1.
        return lambda groups: fused_lamb(groups, max_grad_norm=_NEVER_CLIP, **params), "apex FusedLAMB"
    if device.type != "cuda":
        raise ConfigError("optimizer.type Lamb needs a CUDA device; use AdamW on a CPU")
    from deepspeed.ops.lamb import FusedLamb

    fault = fault_of(
        lambda: _try_lamb(lambda groups: FusedLamb(groups, lr=0.1), device),
        "DeepSpeed's FusedLamb",
        "remove torch's folder of extensions (TORCH_EXTENSIONS_DIR)",
    )
    if fault is not None:
        raise ConfigError(
            f"optimizer.type Lamb: {apex.description}, and DeepSpeed's FusedLamb does not work here ({fault}); use "
            "AdamW, or install the CUDA toolkit that torch was built with, with which DeepSpeed compiles it"
        )
    return lambda groups: FusedLamb(groups, **params), "DeepSpeed FusedLamb"
