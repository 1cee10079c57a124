"""Numbers computed from the settings: batch, steps and memory. A run and ``--dry-run`` print them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from bnb_ds.config.deepspeed import DsConfig
from bnb_ds.config.sections import LoaderSection
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.slots import decoder_lengths

_GIB = 2**30
#: numbers of a buffer in which ZeRO reduces gradients, if the JSON does not say (``reduce_bucket_size``)
DEFAULT_BUCKET = 500_000_000
_CTC_CHUNK_BYTES = 2**28  # logits that bnb_ds.ctc.head holds at a time on a GPU


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters. The model may be on the meta device."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def batch_line(ds_config: DsConfig, loader: LoaderSection) -> str:
    """A line that says how the samples of a step are divided into micro batches and ranks."""
    cut = f"{ds_config.micro_batch} x {ds_config.accumulation_steps} micro steps x {ds_config.world_size} ranks"
    if loader.micro_batch_tokens is not None:
        cut = f"micro batches of at most {loader.micro_batch_tokens:,} tokens on {ds_config.world_size} ranks"
    return f"batch        {ds_config.global_batch} samples = {cut}"


def steps_line(ds_config: DsConfig, num_samples: int, total_steps: int) -> str:
    """A line with the length of the run in steps and in epochs of ``num_samples``."""
    steps_per_epoch = num_samples / ds_config.global_batch
    return f"steps        {total_steps:,} = {total_steps / steps_per_epoch:.3g} epochs of {steps_per_epoch:,.1f} steps"


def memory(
    config: BnbConfig,
    num_parameters: int,
    ds_config: DsConfig,
    max_length: int,
    micro_batch_tokens: int | None = None,
) -> Iterator[str]:
    """Lines that estimate the memory of one GPU. Model states are exact; activations follow a formula.

    Args:
        config: of the model.
        num_parameters: trainable parameters.
        ds_config: checked settings of the launch.
        max_length: tokens of the longest sequence.
        micro_batch_tokens: most tokens of a micro batch, or None if micro batches are counted in samples.
    """
    states = state_bytes(num_parameters, ds_config) + buffer_bytes(ds_config)
    micro_batch, name = ds_config.micro_batch, f"{ds_config.micro_batch} x {max_length} tokens"
    if micro_batch_tokens is not None:
        micro_batch, name = micro_batch_tokens / max_length, f"{micro_batch_tokens:,} tokens"
    activations = activation_bytes(config, ds_config, max_length, micro_batch)
    yield f"memory/GPU   about {(states + activations) / _GIB:.2f} GiB:"
    stage = ds_config.zero_stage
    yield f"             {states / _GIB:.2f} GiB weights, gradients, optimizer and buffers (ZeRO stage {stage})"
    yield (f"             {activations / _GIB:.2f} GiB activations and CTC head of a micro batch of {name}")
    zero = ds_config.values.get("zero_optimization", {})
    bucket = zero.get("reduce_bucket_size", DEFAULT_BUCKET)
    if zero.get("overlap_comm") and ds_config.world_size > 1 and bucket >= num_parameters:
        yield (
            f"             overlap_comm sends nothing early: reduce_bucket_size {bucket:,} holds all {num_parameters:,}"
            " gradients; set a fifth of them, or less"
        )


def state_bytes(num_parameters: int, ds_config: DsConfig) -> float:
    """Bytes of weights, gradients and Adam states on one rank (Rajbhandari et al., SC 2020, section 3).

    Half precision needs 2 bytes per parameter for weights, 2 for gradients, and 12 for the fp32 copy and two moments.
    fp32 needs 4, 4 and 8. ZeRO stage 1 divides the optimizer states by the number of ranks, stage 2 also the
    gradients, stage 3 also the weights.
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


def buffer_bytes(ds_config: DsConfig) -> float:
    """Bytes of the buffers in which ZeRO reduces gradients: one at stage 1 and later, and two with ``overlap_comm``.

    DeepSpeed allocates each in its full size, however small the model is.
    """
    zero = ds_config.values.get("zero_optimization", {})
    if ds_config.zero_stage == 0 or not zero.get("contiguous_gradients", True):
        return 0.0
    half = ds_config.precision != "fp32" and not ds_config.values.get("torch_autocast", {}).get("enabled")
    overlaps = zero.get("overlap_comm", ds_config.zero_stage == 3)
    size = zero.get("reduce_bucket_size", DEFAULT_BUCKET) * (2.0 if half else 4.0)
    return size * (2 if overlaps and ds_config.zero_stage == 2 else 1)


def activation_bytes(config: BnbConfig, ds_config: DsConfig, max_length: int, micro_batch: float) -> float:
    """Bytes of activations and logits that a micro batch keeps for its backward pass.

    In half precision, a layer keeps 34 bytes per token and hidden unit (Korthikanti et al., MLSys 2023, equation 1,
    without the attention matrix, which SDPA does not keep). fp32 doubles this, and cross-attention adds half. With
    activation checkpointing, a layer keeps only its input. With ``deep_supervision``, each decoder layer that predicts,
    but the last, keeps 8 numbers more: those of its head, its hidden gradient, and what the next layer reads. The fused
    CTC head holds one chunk of logits and the fp32 gradient of its matrix; their size does not depend on the batch.
    That of the alignment does (`alignment_bytes`).

    Args:
        config: of the model.
        ds_config: checked settings of the launch.
        max_length: tokens of each sequence.
        micro_batch: sequences of a micro batch; may be a fraction.
    """
    slots = int(decoder_lengths(max_length, config))
    element = 4 if ds_config.precision == "fp32" else 2
    recomputed = "activation_checkpointing" in ds_config.values
    per_unit = element if recomputed else 17 * element
    encoder, decoder = config.encoder, config.decoder
    read = max_length if config.has_decoder else slots
    per_sample = read * encoder.num_hidden_layers * encoder.hidden_size * per_unit
    if config.has_decoder:
        per_sample += slots * decoder.num_hidden_layers * decoder.hidden_size * per_unit * (1 if recomputed else 1.5)
    per_sample += slots * len(config.predicting_layers) * decoder.hidden_size * 8 * element
    per_sample += (1 + len(config.predicting_layers)) * alignment_bytes(config, slots, max_length)
    head = _CTC_CHUNK_BYTES + 4 * config.vocab_size * decoder.hidden_size
    return micro_batch * per_sample + head


def alignment_bytes(config: BnbConfig, slots: int, target_length: int) -> float:
    """Bytes at the peak of the dynamic programme that aligns one target to its slots, in fp32.

    CTC holds nine numbers for each slot and target token: log-probabilities, emissions in both directions, the forward
    variables of blanks and tokens in both directions, and occupancies. A graph holds numbers for each pair of slots,
    either while the links are computed, two for each of their heads, or in the alignment, whose further arrays have a
    number for each slot and target token. (Counted with torch's profiler; a GPU's kernels hold no more.)

    Args:
        config: of the model.
        slots: decoder slots of the sequence.
        target_length: tokens of its target.
    """
    if config.target_kind == "token":
        return 0.0
    if config.target_kind == "ctc":
        return 4.0 * 9 * slots * (target_length + 1)
    heads = config.link_heads or config.decoder.num_attention_heads
    return 4.0 * slots * max((2 * heads + 5) * slots, 8.5 * slots + 9 * target_length)
