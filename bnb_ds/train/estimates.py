"""The numbers that follow from the settings, printed before the first step and by ``--dry-run``."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from bnb_ds.config.deepspeed import DsConfig
from bnb_ds.config.sections import LoaderSection
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.slots import decoder_lengths

_GIB = 2**30
_CTC_CHUNK_BYTES = 2**28  # of bnb_ds.ctc.head on a GPU


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters (those of a model on the meta device too)."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def batch_line(ds_config: DsConfig, loader: LoaderSection) -> str:
    """How a step's samples are cut up."""
    cut = f"{ds_config.micro_batch} x {ds_config.accumulation_steps} micro steps x {ds_config.world_size} ranks"
    if loader.micro_batch_tokens is not None:
        cut = f"micro batches of at most {loader.micro_batch_tokens:,} tokens on {ds_config.world_size} ranks"
    return f"batch        {ds_config.global_batch} samples = {cut}"


def steps_line(ds_config: DsConfig, num_samples: int, total_steps: int) -> str:
    """How long the run is, in steps and in passes over ``num_samples``."""
    steps_per_epoch = num_samples / ds_config.global_batch
    return f"steps        {total_steps:,} = {total_steps / steps_per_epoch:.3g} epochs of {steps_per_epoch:,.1f} steps"


def memory(
    config: BnbConfig,
    num_parameters: int,
    ds_config: DsConfig,
    max_length: int,
    micro_batch_tokens: int | None = None,
) -> Iterator[str]:
    """Lines that estimate the memory of one GPU: model states exactly, activations by formula."""
    states = state_bytes(num_parameters, ds_config)
    micro_batch, name = ds_config.micro_batch, f"{ds_config.micro_batch} x {max_length} tokens"
    if micro_batch_tokens is not None:
        micro_batch, name = micro_batch_tokens / max_length, f"{micro_batch_tokens:,} tokens"
    activations = activation_bytes(config, ds_config, max_length, micro_batch)
    yield f"memory/GPU   about {(states + activations) / _GIB:.2f} GiB:"
    yield f"             {states / _GIB:.2f} GiB weights, gradients and optimizer (ZeRO stage {ds_config.zero_stage})"
    yield (f"             {activations / _GIB:.2f} GiB activations and CTC head of a micro batch of {name}")


def state_bytes(num_parameters: int, ds_config: DsConfig) -> float:
    """Bytes of weights, gradients and Adam states on one rank (Rajbhandari et al., SC 2020, section 3).

    Half precision keeps 2 + 2 bytes per parameter for weights and gradients and 12 for the fp32 copy and two moments;
    fp32 keeps 4 + 4 and 8. Stage 1 divides the optimizer part over ranks, stage 2 also gradients, stage 3 also weights.
    """
    half = ds_config.precision != "fp32" and not ds_config.values.get("torch_autocast", {}).get("enabled")
    weights, gradients, optimizer = (2.0, 2.0, 12.0) if half else (4.0, 4.0, 8.0)
    if half and ds_config.values.get("data_types", {}).get("grad_accum_dtype") == "fp32":
        gradients = 4.0
    ranks = ds_config.world_size
    if ds_config.zero_stage >= 1:
        optimizer = 0.0 if ds_config.offloads_optimizer else optimizer / ranks
    if ds_config.zero_stage >= 2:
        gradients /= ranks
    if ds_config.zero_stage >= 3:
        weights /= ranks
    return num_parameters * (weights + gradients + optimizer)


def activation_bytes(config: BnbConfig, ds_config: DsConfig, max_length: int, micro_batch: float) -> float:
    """Bytes that a micro batch of that many sequences of ``max_length`` keeps for backward, and its logits.

    34 bytes per token, layer and hidden unit in half precision (Korthikanti et al., MLSys 2023, equation 1, without
    the attention matrix, which SDPA does not keep), twice that in fp32 and half as much again for cross-attention; with
    activation checkpointing only each layer's input. The fused CTC head holds one chunk of logits and the gradient of
    its matrix in fp32, whatever the batch.
    """
    slots = int(decoder_lengths(max_length, config))
    element = 4 if ds_config.precision == "fp32" else 2
    recomputed = "activation_checkpointing" in ds_config.values
    per_unit = element if recomputed else 17 * element
    encoder, decoder = config.encoder, config.decoder
    per_sample = max_length * encoder.num_hidden_layers * encoder.hidden_size * per_unit
    per_sample += slots * decoder.num_hidden_layers * decoder.hidden_size * per_unit * (1 if recomputed else 1.5)
    head = _CTC_CHUNK_BYTES + 4 * config.vocab_size * decoder.hidden_size
    return micro_batch * per_sample + head
