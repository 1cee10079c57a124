"""Create the DeepSpeed engine and take its optimizer steps.

``deepspeed.initialize`` is called only here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bnb_ds.config.deepspeed import DsConfig
from bnb_ds.ctc import kernels as ctc_kernels
from bnb_ds.dag import kernels as dag_kernels
from bnb_ds.errors import ConfigError
from bnb_ds.model.varlen import kernel_choice as varlen_attention
from bnb_ds.train.fused import choose_optimizer, fault_of_cpu_adam, fuse_layer_norms, torch_optimizer
from bnb_ds.train.hardware import DTYPES, refuse_emulation
from bnb_ds.train.parameters.groups import ALIKE, Rates, parameter_groups

#: part of DeepSpeed's error for an overflow that no lower loss scale can mend
_LOWEST_SCALE = "loss scale already at minimum"


def build_engine(
    model: nn.Module,
    ds_config: DsConfig,
    device: torch.device,
    multiplier: Callable[[int], float],
    *,
    rates: Rates = ALIKE,
    load_universal: bool = False,
) -> tuple[Any, str]:
    """Wrap a model for training.

    Args:
        model: on any device; the engine moves it.
        ds_config: checked settings of this launch.
        device: device of this rank.
        multiplier: learning-rate multiplier of the 0-based step (:mod:`bnb_ds.train.schedule`).
        rates: how parameters are grouped.
        load_universal: True if a universal checkpoint will be loaded (:mod:`bnb_ds.checkpoint.resume`).

    Returns:
        The ``DeepSpeedEngine``, and one line that names the kernels in use.

    Raises:
        ConfigError: DeepSpeed rejects the settings, or the device has no such precision.
    """
    refuse_emulation(device, ds_config.precision, ds_config.path)
    import deepspeed
    from deepspeed.runtime.config import DeepSpeedConfigError
    from deepspeed.runtime.zero.utils import ZeRORuntimeException

    layer_norm = fuse_layer_norms(model, device)
    if "activation_checkpointing" in ds_config.values:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    params = dict(ds_config.optimizer.get("params", {}))
    if ds_config.offloads_optimizer:
        optimizer, optimizer_name, values = _offloaded_optimizer(ds_config, params)
    else:
        optimizer, optimizer_name = choose_optimizer(ds_config.optimizer["type"], params, device)
        values = {key: value for key, value in ds_config.values.items() if key != "optimizer"}
    if load_universal:
        values = {**values, "checkpoint": {"load_universal": True}}
    try:
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameter_groups(model, params.get("weight_decay", 0.0), params.get("lr"), rates),
            optimizer=optimizer,
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, multiplier),
            config=values,
            dist_init_required=False,
        )
    except (ValueError, AssertionError, DeepSpeedConfigError, ZeRORuntimeException) as error:
        # Only DeepSpeed knows all combinations of settings that exclude each other.
        raise ConfigError(f"{ds_config.path}: DeepSpeed rejects these settings; change them: {error}") from error
    target = _dynamic_programme(model, device)
    kernels = f"{optimizer_name}; {layer_norm}; {target}{_attention(model, ds_config, device)}"
    return engine, f"{kernels}; ZeRO stage {ds_config.zero_stage}; {ds_config.precision}"


def _attention(model: nn.Module, ds_config: DsConfig, device: torch.device) -> str:
    """What a line of kernels says about attention on a GPU; nothing for a model of another library."""
    encoder = getattr(getattr(model, "config", None), "encoder", None)
    if device.type != "cuda" or encoder is None:
        return ""
    head_size = encoder.hidden_size // encoder.num_attention_heads
    return f"; {varlen_attention.description(device, DTYPES[ds_config.precision], head_size)}"


def _offloaded_optimizer(
    ds_config: DsConfig, params: dict[str, Any]
) -> tuple[Callable[[Any], torch.optim.Optimizer] | None, str, dict[str, Any]]:
    """What updates an offloaded state: a function that creates it, or None; its name; and DeepSpeed's settings.

    With None, DeepSpeed builds its CPUAdam from the optimizer block of the settings.
    """
    kind = ds_config.optimizer["type"]
    if kind == "Lamb":
        raise ConfigError(f"{ds_config.path}: Lamb cannot be offloaded; use AdamW, or remove offload_optimizer")
    fault = fault_of_cpu_adam()
    if fault is not None:
        values = {key: value for key, value in ds_config.values.items() if key != "optimizer"}
        values["zero_force_ds_cpu_optimizer"] = False
        name = f"torch {kind}, fused (offloaded; DeepSpeed CPUAdam does not work here: {fault})"
        return torch_optimizer(kind, params), name, values
    # By default, DeepSpeed decouples the weight decay of "Adam" too.
    block = {"type": kind, "params": {**params, "adam_w_mode": kind == "AdamW"}}
    return None, "DeepSpeed CPUAdam (offloaded)", {**ds_config.values, "optimizer": block}


def _dynamic_programme(model: nn.Module, device: torch.device) -> str:
    """What a line of kernels says about the loss."""
    config = getattr(model, "config", None)
    kernels = dag_kernels if getattr(config, "target", None) == "dag" else ctc_kernels
    return kernels.description(device)


class LossScaleExhausted(Exception):
    """The gradient overflows in fp16, and the dynamic loss scale is as low as it may be."""


def gradient_norm(engine: Any) -> torch.Tensor | None:
    """The global gradient norm where DeepSpeed does not compute one, for :func:`take_step`: [] on the device.

    None with any other ZeRO stage or precision than stage 0 without fp16 or bf16.
    """
    if engine.zero_optimization_stage() != 0 or engine.fp16_enabled() or engine.bfloat16_enabled():
        return None
    return nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])


def take_step(engine: Any, known_norm: float | None) -> float | None:
    """Finish an optimizer step after its last ``backward``; return the global gradient norm before clipping.

    The norm is None with ``compute_grad_norm: false`` in the DeepSpeed JSON. If the norm is not finite, the weights
    were not updated. DeepSpeed skips such a step, except at ZeRO stage 0 without fp16 or bf16, where it never checks
    the gradient; there this function skips it.

    Args:
        engine: the engine.
        known_norm: the number that :func:`gradient_norm` has computed, or None if it has computed none.

    Raises:
        LossScaleExhausted: on all ranks; the weights were not updated.
    """
    if known_norm is not None:
        if math.isfinite(known_norm):
            engine.step()
        return known_norm
    try:
        engine.step()
    except Exception as error:  # DeepSpeed has no class for it
        if _LOWEST_SCALE in str(error):
            raise LossScaleExhausted from error
        raise
    if getattr(engine.optimizer, "overflow", False):
        # After a skipped step, ZeRO 3 still reports the norm of the previous step.
        return math.inf
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def abandon_step(engine: Any) -> None:
    """Leave the engine ready for the next step after :func:`take_step` found a gradient that is not a number.

    DeepSpeed already does this, except at ZeRO stage 0 without fp16 or bf16, where it never checks the gradient.
    """
    if engine.zero_optimization_stage() == 0 and not engine.fp16_enabled() and not engine.bfloat16_enabled():
        engine.zero_grad()
        engine.micro_steps += 1
        engine.global_steps += 1
        engine.skipped_steps += 1
