"""The DeepSpeed JSON: loaded, checked and completed for the number of ranks of this launch.

The JSON owns what DeepSpeed reads: global and micro batch, precision, clipping, ZeRO, optimizer with peak learning
rate, activation checkpointing and communication. ``gradient_accumulation_steps`` is derived from global batch, micro
batch and world size, so that one file serves any number of GPUs. DeepSpeed ignores unknown top-level keys, hence the
checks here; all faults of a file are reported at once, before any GPU is touched.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnb_ds.config import nearest
from bnb_ds.errors import ConfigError

_TOP_LEVEL = frozenset(
    {
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "optimizer",
        "gradient_clipping",
        "fp16",
        "bf16",
        "torch_autocast",
        "data_types",
        "zero_optimization",
        "zero_force_ds_cpu_optimizer",
        "activation_checkpointing",
        "communication_data_type",
        "prescale_gradients",
        "gradient_predivide_factor",
        "comms_logger",
        "flops_profiler",
        "aio",
        "wall_clock_breakdown",
        "memory_breakdown",
        "steps_per_print",
        "log_level",
        "dump_state",
        "disable_python_gc",
    }
)

_REFUSED = {
    "gradient_accumulation_steps": "it is derived from global batch, micro batch and the number of ranks",
    "scheduler": "the learning-rate schedule is the recipe's `schedule` section",
    "amp": "apex amp no longer exists; use fp16, bf16 or torch_autocast",
    "tensorboard": "bnb_ds writes TensorBoard itself, under output_dir/runs",
    "gradient_allreduce_op": "bnb_ds normalises the loss over the global batch and relies on DeepSpeed's mean",
    "elasticity": "DeepSpeed removed it",
    "curriculum_learning": "DeepSpeed removed it",
    "progressive_layer_drop": "DeepSpeed removed it",
    "compression_training": "DeepSpeed removed it",
    "sparse_attention": "DeepSpeed removed it",
    "nebula": "DeepSpeed removed it",
}

_ACTIVATION_CHECKPOINTING_KEYS = frozenset(
    {
        "partition_activations",
        "number_checkpoints",
        "contiguous_memory_optimization",
        "synchronize_checkpoint_boundary",
        "profile",
        "cpu_checkpointing",
    }
)

#: optimizer type -> parameters it takes
OPTIMIZER_PARAMS = {
    "AdamW": frozenset({"lr", "betas", "eps", "weight_decay"}),
    "Adam": frozenset({"lr", "betas", "eps", "weight_decay"}),
    "Lamb": frozenset({"lr", "betas", "eps", "weight_decay"}),
}


@dataclass(frozen=True)
class DsConfig:
    """A checked DeepSpeed configuration for a known number of ranks."""

    path: Path
    world_size: int
    #: what DeepSpeed receives, completed
    values: dict[str, Any]

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step over all ranks."""
        return self.values["train_batch_size"]

    @property
    def micro_batch(self) -> int:
        """Samples per forward and backward on one rank."""
        return self.values["train_micro_batch_size_per_gpu"]

    @property
    def accumulation_steps(self) -> int:
        """Micro steps per optimizer step."""
        return self.values["gradient_accumulation_steps"]

    @property
    def zero_stage(self) -> int:
        return self.values.get("zero_optimization", {}).get("stage", 0)

    @property
    def precision(self) -> str:
        """``fp16``, ``bf16`` or ``fp32``: the number format of the matrix products."""
        for name in ("fp16", "bf16"):
            if self.values.get(name, {}).get("enabled"):
                return name
        autocast = self.values.get("torch_autocast", {})
        if autocast.get("enabled"):
            return {"float16": "fp16", "bfloat16": "bf16"}[autocast.get("dtype", "bfloat16").removeprefix("torch.")]
        return "fp32"

    @property
    def optimizer(self) -> dict[str, Any]:
        return self.values["optimizer"]

    @property
    def offloads_optimizer(self) -> bool:
        device = self.values.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none")
        return device != "none"


def load_ds_config(path: str | Path, world_size: int) -> DsConfig:
    """Load, check and complete a DeepSpeed JSON.

    Args:
        path: the file that ``--deepspeed_config`` names.
        world_size: ranks of this launch.

    Raises:
        ConfigError: naming the file and every fault in it, with the way out of each.
    """
    path = Path(path)
    values = _read_json(path)
    faults = [*_key_faults(values), *_value_faults(values)]
    if not faults:
        faults = list(_batch_faults(values, world_size))
    if faults:
        raise ConfigError(f"{path}: " + "; ".join(faults))
    completed = copy.deepcopy(values)
    micro_step = values["train_micro_batch_size_per_gpu"] * world_size
    completed["gradient_accumulation_steps"] = values["train_batch_size"] // micro_step
    # DeepSpeed's own progress lines repeat ours; a user who wants them says so in the file.
    completed.setdefault("steps_per_print", 10**9)
    completed.setdefault("log_level", "warning")
    return DsConfig(path=path, world_size=world_size, values=completed)


def _read_json(path: Path) -> dict[str, Any]:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"{path}: {', '.join(map(repr, twice))} is given twice; keep one")
        return dict(pairs)

    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=refuse_duplicates)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such DeepSpeed JSON; shipped ones are under ds_configs/") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON at line {error.lineno}: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a DeepSpeed JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a DeepSpeed JSON is an object; this file is not one")
    return values


def _key_faults(values: dict[str, Any]) -> Iterator[str]:
    for key in values:
        if key in _REFUSED:
            yield f"remove {key!r}: {_REFUSED[key]}"
        elif key not in _TOP_LEVEL:
            yield f"unknown key {key!r}: {nearest(key, _TOP_LEVEL)}"
    for block, known in _known_block_keys().items():
        section = values.get(block, {})
        if not isinstance(section, dict):
            yield f"{block}: write an object, not {section!r}"
            continue
        for key in section:
            if key not in known:
                yield f"unknown key {block + '.' + key!r}: {nearest(key, known)}"
    for path in _auto_paths(values):
        yield f"{path}: 'auto' is Hugging Face Trainer's; write the value"


def _known_block_keys() -> dict[str, frozenset[str]]:
    # DeepSpeed takes seconds to import and is needed only here; its own classes know the names of its release.
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    blocks = {
        "activation_checkpointing": _ACTIVATION_CHECKPOINTING_KEYS,
        "optimizer": frozenset({"type", "params"}),
        "torch_autocast": frozenset({"enabled", "dtype", "lower_precision_safe_modules"}),
        "data_types": frozenset({"grad_accum_dtype"}),
    }
    for name, model in (
        ("fp16", DeepSpeedFP16Config),
        ("bf16", DeepSpeedBF16Config),
        ("zero_optimization", DeepSpeedZeroConfig),
    ):
        aliases = {field.alias for field in model.model_fields.values() if field.alias}
        blocks[name] = frozenset(model.model_fields) | aliases
    return blocks


def _auto_paths(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _auto_paths(value, f"{prefix}.{key}" if prefix else key)
    elif node == "auto":
        yield prefix


def _value_faults(values: dict[str, Any]) -> Iterator[str]:
    yield from _optimizer_faults(values.get("optimizer"))
    blocks = {
        name: values.get(name) if isinstance(values.get(name), dict) else {}
        for name in ("zero_optimization", "fp16", "bf16", "torch_autocast", "data_types", "activation_checkpointing")
    }
    stage = blocks["zero_optimization"].get("stage", 0)
    if stage not in (0, 1, 2, 3):
        yield f"zero_optimization.stage: {stage!r} is not 0, 1, 2 or 3"
    enabled = [name for name in ("fp16", "bf16", "torch_autocast") if blocks[name].get("enabled")]
    if len(enabled) > 1:
        yield f"{' and '.join(enabled)} are both enabled; keep one"
    if "fp16" in enabled and stage == 0:
        yield "fp16 with ZeRO stage 0 trains wrongly (the loss is never scaled); set zero_optimization.stage to 1"
    if "bf16" in enabled and stage == 0 and blocks["data_types"].get("grad_accum_dtype") == "fp32":
        yield "bf16 with fp32 gradient accumulation needs ZeRO; set zero_optimization.stage to 1 or more"
    optimizer = values.get("optimizer")
    if stage and isinstance(optimizer, dict) and optimizer.get("type") == "Lamb":
        yield "Lamb computes its trust ratio per parameter, which ZeRO cuts up; set zero_optimization.stage to 0"
    for key in ("partition_activations", "cpu_checkpointing", "contiguous_memory_optimization"):
        if blocks["activation_checkpointing"].get(key):
            yield f"activation_checkpointing.{key}: only plain recomputation is supported; set it to false"


def _optimizer_faults(optimizer: Any) -> Iterator[str]:
    if not isinstance(optimizer, dict):
        yield "optimizer: this block is required: it holds the type and the peak learning rate"
        return
    kind, params = optimizer.get("type"), optimizer.get("params", {})
    if kind not in OPTIMIZER_PARAMS:
        yield f"optimizer.type: {kind!r} is not supported; {nearest(str(kind), OPTIMIZER_PARAMS)}"
        return
    if not isinstance(params, dict):
        yield f"optimizer.params: write an object, not {params!r}"
        return
    for key in params:
        if key not in OPTIMIZER_PARAMS[kind]:
            yield f"unknown key {'optimizer.params.' + key!r}: {nearest(key, OPTIMIZER_PARAMS[kind])}"
    rate = params.get("lr")
    if not isinstance(rate, int | float) or isinstance(rate, bool) or rate <= 0:
        yield f"optimizer.params.lr: the peak learning rate is a positive number, not {rate!r}"


def _batch_faults(values: dict[str, Any], world_size: int) -> Iterator[str]:
    sizes = {key: values.get(key) for key in ("train_batch_size", "train_micro_batch_size_per_gpu")}
    for key, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            yield f"{key}: a positive whole number is required, not {value!r}"
            return
    total, micro = sizes.values()
    if total % (micro * world_size) == 0:
        return
    if total % world_size:
        multiple = -(-total // world_size) * world_size
        yield f"train_batch_size {total} does not divide over {world_size} ranks; the next that does is {multiple}"
        return
    per_rank = total // world_size
    fitting = ", ".join(str(m) for m in range(1, per_rank + 1) if per_rank % m == 0)
    yield (
        f"train_batch_size {total} is not a multiple of train_micro_batch_size_per_gpu {micro} x {world_size} ranks; "
        f"micro batches that fit: {fitting}"
    )
