"""A model of the time of a training step on 1 to 1,024 GPUs: computation, communication, waiting, saving.

It says where a launch would stop scaling, and why, before any GPU is rented. Every number in it is a data sheet's, a
formula's, or the caller's; none is fitted. `docs/gpus.md` says how far it can be trusted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from bnb_ds.config.deepspeed import DsConfig, load_ds_config
from bnb_ds.errors import ConfigError
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.flops import TRAINING_FACTOR, forward_flops
from bnb_ds.model.slots import decoder_lengths
from bnb_ds.train.estimates import DEFAULT_BUCKET, activation_bytes, buffer_bytes, state_bytes

_GIB = 2**30
#: share of a step in which gradients are ready to be sent: the backward pass is two of three parts
_BACKWARD = 2 / 3
#: bytes that AdamW reads and writes for each parameter that a rank updates: fp32 copy, moments, gradient, weight
_ADAM_BYTES = 30
#: share of a speed below which the model calls it a loss
_WORTH_IT = 0.7


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU in its usual machine of eight.

    Attributes:
        peak: precision -> FLOP/s of dense matrix products.
        memory: GiB.
        memory_speed: bytes/s of the GPU's memory.
        link: bytes/s from one GPU to the others of its machine, in one direction.
        network: bytes/s of the machine's network, all adapters together, in one direction.
        ds_config: the shipped JSON for it.
    """

    name: str
    peak: dict[str, float]
    memory: int
    memory_speed: float
    link: float
    network: float
    ds_config: str


#: from NVIDIA's data sheets of the GPUs and of DGX-1, DGX A100, DGX H100 and DGX H200
GPUS = {
    "v100": Gpu("V100", {"fp16": 125e12, "fp32": 15.7e12}, 32, 0.9e12, 150e9, 50e9, "ds_configs/v100_fp16_zero1.json"),
    "a100": Gpu(
        "A100",
        {"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12},
        80,
        2.0e12,
        300e9,
        200e9,
        "ds_configs/a100_bf16_zero2.json",
    ),
    "h100": Gpu(
        "H100",
        {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12},
        80,
        3.35e12,
        450e9,
        400e9,
        "ds_configs/h100_bf16_zero1.json",
    ),
    "h200": Gpu(
        "H200",
        {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12},
        141,
        4.8e12,
        450e9,
        400e9,
        "ds_configs/h100_bf16_zero1.json",
    ),
}


@dataclass(frozen=True)
class Setting:
    """What is assumed of the cluster and the run; `bnb-ds plan --help` says what to put in place of the defaults.

    Attributes:
        gpu: the kind of GPU.
        efficiency: share of the peak that a rank reaches on real tokens, without communication.
        host_seconds: the host's time to launch a micro step, which no micro step can be shorter than.
        node: GPUs of a machine.
        link, network: bytes/s, as in `Gpu`.
        reached: share of these speeds that collective operations reach.
        latency: seconds of one hop of a ring.
        variation: standard deviation of a micro step's time over ranks, as a share of its mean.
        storage: bytes/s with which a checkpoint is written.
        checkpoint_steps: steps between checkpoints.
    """

    gpu: Gpu
    efficiency: float = 0.4
    host_seconds: float = 0.02
    node: int = 8
    link: float = 0.0
    network: float = 0.0
    reached: float = 0.75
    latency: float = 6e-6
    variation: float = 0.05
    storage: float = 2e9
    checkpoint_steps: int = 1000


class Traffic(NamedTuple):
    """Bytes of whole tensors that the ranks hand to collective operations in a step."""

    all_reduce: float
    reduce_scatter: float
    all_gather: float

    def sent(self, ranks: int) -> float:
        """Bytes that each rank sends around a ring. An all-reduce goes round twice: scattered, then gathered."""
        return (2 * self.all_reduce + self.reduce_scatter + self.all_gather) * (ranks - 1) / ranks


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step on a number of GPUs.

    Attributes:
        ranks: GPUs.
        micro_steps: of a rank.
        compute: forward and backward passes of a rank.
        waiting: for the slowest rank.
        traffic: communication that computation does not hide.
        hidden: communication that it hides.
        update: the optimizer.
        saving: a step's share of a checkpoint.
        tokens: source tokens of the step.
        flops: matrix operations of the step on real tokens, all ranks together.
        memory: bytes of one GPU.
        is_host_bound: whether launching takes longer than computing.
    """

    ranks: int
    micro_steps: int
    compute: float
    waiting: float
    traffic: float
    hidden: float
    update: float
    saving: float
    tokens: float
    flops: float
    memory: float
    is_host_bound: bool

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.compute + self.waiting + self.traffic + self.update + self.saving

    def mfu(self, peak: float) -> float:
        """Share of the GPUs' peak speed."""
        return self.flops / self.seconds / (peak * self.ranks)

    def losses(self) -> dict[str, float]:
        """Seconds that a GPU does not compute, by their cause."""
        return {"waiting": self.waiting, "traffic": self.traffic, "update": self.update, "saving": self.saving}


def traffic(num_parameters: int, ds_config: DsConfig) -> Traffic:
    """What DeepSpeed sends in a step at each ZeRO stage; `tests/distributed/test_traffic.py` measures the same.

    Stages 0 and 1 reduce gradients once a step, stages 2 and 3 in every micro step; only stage 3 leaves each rank its
    part of them. Stages 1 and 2 gather the updated weights once. Stage 3 gathers the weights in every micro step, and
    again for its backward pass if the model is larger than ``stage3_max_live_parameters`` (10^9).
    """
    half = ds_config.precision != "fp32" and not ds_config.values.get("torch_autocast", {}).get("enabled")
    weight = 2 if half else 4
    named = {"fp16": 2, "bf16": 2, "fp32": 4}
    gradient = named.get(str(ds_config.values.get("communication_data_type")), weight)
    stage, micro_steps = ds_config.zero_stage, ds_config.accumulation_steps
    zero = ds_config.values.get("zero_optimization", {})
    stays = num_parameters <= zero.get("stage3_max_live_parameters", 10**9)
    reductions = micro_steps if stage >= 2 else 1
    gathers = {0: 0, 1: 1, 2: 1, 3: micro_steps if stays else 2 * micro_steps}[stage]
    gradients, weights = reductions * gradient * num_parameters, gathers * weight * num_parameters
    return Traffic(0.0, gradients, weights) if stage == 3 else Traffic(gradients, 0.0, weights)


def early_share(num_parameters: int, ds_config: DsConfig) -> float:
    """The share of the gradients that DeepSpeed sends before the backward pass has computed all of them.

    Stages 2 and 3 send a bucket when it is full, and the last one at the end.
    """
    bucket = ds_config.values.get("zero_optimization", {}).get("reduce_bucket_size", DEFAULT_BUCKET)
    return max(0.0, 1 - bucket / num_parameters) if ds_config.zero_stage >= 2 else 0.0


def of_ranks(path: str | Path, ranks: int, batch: int | None = None) -> DsConfig | None:
    """A DeepSpeed JSON on a number of ranks, with the largest micro batch up to its own that divides a rank's share.

    Args:
        path: the file.
        ranks: GPUs.
        batch: samples of a step; None: those of the file.

    Returns:
        None if the batch cannot be divided among the ranks.

    Raises:
        ConfigError: as `bnb_ds.config.deepspeed.load_ds_config`.
    """
    alone = load_ds_config(path, 1)
    batch = batch or alone.global_batch
    if batch % ranks:
        return None
    share = batch // ranks
    micro = max(size for size in range(1, min(alone.micro_batch, share) + 1) if share % size == 0)
    sizes = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": share // micro,
    }
    return replace(alone, world_size=ranks, values={**alone.values, **sizes})


def ring_seconds(sent: float, ranks: int, operations: int, setting: Setting) -> float:
    """Seconds of collective operations in which each rank sends these bytes around rings.

    Every ring passes through all GPUs, so its speed is that of the slowest connection: the machine's network, if there
    are several machines, shared by as many rings as it has adapters.
    """
    if ranks == 1:
        return 0.0
    link, network = setting.link or setting.gpu.link, setting.network or setting.gpu.network
    speed = setting.reached * (link if ranks <= setting.node else min(link, network))
    return sent / speed + operations * 2 * (ranks - 1) * setting.latency


def slowest(ranks: int) -> float:
    """How many standard deviations the slowest of some ranks lies above their mean, on average, for normal times."""
    if ranks == 1:
        return 0.0
    # Blom (1958): the expected largest of n normal values, within 1% for all n here.
    return NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def step_time(
    config: BnbConfig, num_parameters: int, ds_config: DsConfig, lengths: np.ndarray, setting: Setting
) -> StepTime:
    """The time of a step with the ranks, batch and ZeRO stage of ``ds_config``.

    Args:
        config: of the model.
        num_parameters: trainable parameters.
        ds_config: checked settings of a launch.
        lengths: int64, source tokens of typical samples.
        setting: cluster and run.

    Raises:
        ConfigError: the GPU has no such precision.
    """
    precision, ranks = ds_config.precision, ds_config.world_size
    if precision not in setting.gpu.peak:
        raise ConfigError(f"{ds_config.path}: a {setting.gpu.name} has no {precision}; use {setting.gpu.ds_config}")
    of_a_sample = forward_flops(config, lengths, decoder_lengths(lengths, config)) / len(lengths)
    recomputed = 1 if "activation_checkpointing" in ds_config.values else 0
    flops = TRAINING_FACTOR * of_a_sample * ds_config.global_batch
    speed = setting.gpu.peak[precision] * setting.efficiency
    micro_step = (TRAINING_FACTOR + recomputed) * of_a_sample * ds_config.micro_batch / speed
    bound = max(micro_step, setting.host_seconds)
    compute = bound * ds_config.accumulation_steps
    sent, stage = traffic(num_parameters, ds_config), ds_config.zero_stage
    operations = (1 if stage < 2 else ds_config.accumulation_steps) * (1 if stage < 3 else 3)
    seconds = ring_seconds(sent.sent(ranks), ranks, operations, setting)
    overlaps = ds_config.values.get("zero_optimization", {}).get("overlap_comm", stage == 3)
    hidden = min(seconds * early_share(num_parameters, ds_config), _BACKWARD * compute) if overlaps else 0.0
    updated = num_parameters / (ranks if stage >= 1 else 1)
    states = state_bytes(num_parameters, ds_config)
    return StepTime(
        ranks=ranks,
        micro_steps=ds_config.accumulation_steps,
        compute=compute,
        # The sum of independent micro steps varies less than each of them. Stages 2 and 3 meet after each.
        waiting=slowest(ranks) * setting.variation * bound * _meetings(stage, ds_config.accumulation_steps),
        traffic=seconds - hidden,
        hidden=hidden,
        update=updated * _ADAM_BYTES / setting.gpu.memory_speed,
        saving=16 * num_parameters / setting.storage / setting.checkpoint_steps,
        tokens=float(lengths.mean()) * ds_config.global_batch,
        flops=flops,
        memory=states
        + buffer_bytes(ds_config)
        + activation_bytes(config, ds_config, int(lengths.max()), ds_config.micro_batch),
        is_host_bound=setting.host_seconds > micro_step,
    )


def _meetings(stage: int, micro_steps: int) -> float:
    return micro_steps if stage >= 2 else micro_steps**0.5


def advice(times: list[StepTime], ds_config: DsConfig, setting: Setting) -> Iterator[str]:
    """Where the speed of a GPU falls below 70% of that of one, and what to set then."""
    first = times[0]
    alone = first.tokens / first.seconds / first.ranks
    for time in times:
        share = time.tokens / time.seconds / time.ranks / alone
        if share >= _WORTH_IT:
            continue
        cause, lost = max(time.losses().items(), key=lambda item: item[1])
        if time.is_host_bound and time.compute > 0.5 * time.seconds:
            cause = "launches"
        yield f"from {time.ranks:,} GPUs on, a GPU does {share:.0%} of the work of one alone, because of {cause}:"
        kind = "traffic once a step" if cause == "traffic" and ds_config.zero_stage <= 1 else cause
        yield _WAYS_OUT[kind].format(lost=f"{lost:.3g}")
        break
    else:
        yield f"every GPU does at least {_WORTH_IT:.0%} of the work of one alone, up to {times[-1].ranks:,} GPUs"
    if first.memory / _GIB > 0.9 * setting.gpu.memory:
        yield f"a micro batch needs {first.memory / _GIB:.0f} GiB, too much for {setting.gpu.memory}: halve it"


_WAYS_OUT = {
    "waiting": (
        "  {lost} s of a step are spent waiting for the slowest rank. Count micro batches in tokens"
        " (loader.micro_batch_tokens), or take ZeRO stage 1, whose ranks meet once a step"
    ),
    "traffic": (
        "  {lost} s of a step are communication that nothing hides. Take ZeRO stage 1, which sends gradients once a"
        " step, where memory allows; or larger micro batches and overlap_comm"
    ),
    "traffic once a step": (
        "  {lost} s of a step are communication. Take a larger train_batch_size (with LAMB:"
        " ds_configs/a100_autocast_lamb.json), stage 2 with overlap_comm if a step has one or two micro steps, a 16-bit"
        " communication_data_type, or a faster network"
    ),
    "update": "  {lost} s of a step are the optimizer's. Take ZeRO stage 1, which divides it among ranks",
    "saving": "  {lost} s of a step are checkpoints. Save less often (intervals.checkpoint_steps), or faster",
    "launches": (
        "  the micro batches are too small to keep a GPU busy. Take larger ones, or a larger train_batch_size (with"
        " LAMB: ds_configs/a100_autocast_lamb.json)"
    ),
}
