"""The one call of ``deepspeed.initialize`` and what we add to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bnb_ds.ds_config import DsConfig
from bnb_ds.fused import choose_optimizer, fuse_layer_norms


def build_engine(
    model: nn.Module, ds_config: DsConfig, device: torch.device, multiplier: Callable[[int], float]
) -> tuple[Any, str]:
    """Wrap a model for training.

    Args:
        model: on any device; the engine moves it.
        ds_config: checked settings of this launch.
        device: of this rank.
        multiplier: learning-rate multiplier of the 0-based step (:mod:`bnb_ds.schedule`).

    Returns:
        The ``DeepSpeedEngine`` and one line that says which kernels are in use.
    """
    import deepspeed

    layer_norm = fuse_layer_norms(model, device)
    if "activation_checkpointing" in ds_config.values:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    params = dict(ds_config.optimizer.get("params", {}))
    if ds_config.offloads_optimizer:
        # DeepSpeed's CPU Adam updates the offloaded state; it is built from the JSON's own block.
        optimizer, optimizer_name, values = None, "DeepSpeed CPUAdam (offloaded)", ds_config.values
    else:
        optimizer, optimizer_name = choose_optimizer(ds_config.optimizer["type"], params, device)
        values = {key: value for key, value in ds_config.values.items() if key != "optimizer"}
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=parameter_groups(model, params.get("weight_decay", 0.0)),
        optimizer=optimizer,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, multiplier),
        config=values,
        dist_init_required=False,
    )
    return engine, f"{optimizer_name}; {layer_norm}; ZeRO stage {ds_config.zero_stage}; {ds_config.precision}"


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices only: biases and LayerNorm weights are exempt, as in BERT."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def gradient_norm_before_step(engine: Any) -> float | None:
    """Global gradient norm where DeepSpeed itself keeps none (ZeRO stage 0 in fp32); else None.

    To be called between the last ``backward`` and ``step``, when gradients are already averaged over ranks.
    """
    if engine.zero_optimization_stage() > 0 or engine.fp16_enabled() or engine.bfloat16_enabled():
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


def gradient_norm_after_step(engine: Any) -> float:
    """Global gradient norm of the step just taken, before clipping."""
    return float(engine.get_global_grad_norm())
