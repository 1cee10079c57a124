"""The keys, values and combinations that are allowed in a DeepSpeed JSON.

DeepSpeed ignores unknown top-level keys and accepts some combinations that train wrongly. It reports other faults only
once a process group exists. This module finds every fault that the file alone shows, and reports all at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from bnb_ds.errors import nearest

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
        "wall_clock_breakdown",
        "memory_breakdown",
        "steps_per_print",
        "log_level",
        "dump_state",
        "disable_python_gc",
    }
)

_REFUSED = {
    "gradient_accumulation_steps": "it is derived from the global batch, the micro batch and the number of ranks",
    "scheduler": "the learning-rate schedule is set in the recipe's `schedule` section",
    "amp": "apex.amp no longer exists; use fp16, bf16 or torch_autocast",
    "tensorboard": "bnb_ds writes TensorBoard itself, under output_dir/runs",
    "gradient_allreduce_op": "bnb_ds normalises the loss over the global batch and relies on DeepSpeed's mean",
    "elasticity": "bnb_ds does not use it, and newer DeepSpeed has removed it",
    "curriculum_learning": "bnb_ds does not use it, and newer DeepSpeed has removed it",
    "progressive_layer_drop": "bnb_ds does not use it, and newer DeepSpeed has removed it",
    "compression_training": "bnb_ds does not use it, and newer DeepSpeed has removed it",
    "sparse_attention": "bnb_ds does not use it, and newer DeepSpeed has removed it",
    "nebula": "bnb_ds does not use it, and newer DeepSpeed has removed it",
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

#: optimizer type -> parameters that it accepts
OPTIMIZER_PARAMS = {
    "AdamW": frozenset({"lr", "betas", "eps", "weight_decay"}),
    "Adam": frozenset({"lr", "betas", "eps", "weight_decay"}),
    "Lamb": frozenset({"lr", "betas", "eps", "weight_decay"}),
}

_UNCHECKED = "a gradient that is not finite would spoil the weights; remove the setting"
_AUTOCAST_KEYS = frozenset({"enabled", "dtype", "lower_precision_safe_modules"})
_COMMS_LOGGER_KEYS = frozenset({"enabled", "verbose", "prof_all", "debug", "prof_ops"})
_FLOPS_PROFILER_KEYS = frozenset(
    {"enabled", "recompute_fwd_factor", "profile_step", "module_depth", "top_modules", "detailed", "output_file"}
)


def find_faults(values: dict[str, Any]) -> Iterator[str]:
    """All faults of a DeepSpeed configuration except those of the batch sizes, each with its remedy."""
    for key in values:
        if key in _REFUSED:
            yield f"remove {key!r}: {_REFUSED[key]}"
        elif key not in _TOP_LEVEL:
            yield f"unknown key {key!r}: {nearest(key, _TOP_LEVEL)}"
    for path in _auto_paths(values):
        yield f"{path}: only the Hugging Face Trainer fills in 'auto'; write the value"
    yield from _optimizer_faults(values.get("optimizer"))
    block_faults = list(_block_faults(values))
    yield from block_faults
    clipping = values.get("gradient_clipping", 1.0)
    if clipping != "auto" and not _is_number(clipping, minimum=0):
        yield f"gradient_clipping: give the largest gradient norm (0: no clipping) as a number, not {clipping!r}"
    if not block_faults:
        yield from _combination_faults(values)


def _block_faults(values: dict[str, Any]) -> Iterator[str]:
    # DeepSpeed takes seconds to import, so it is imported only here. Its classes list the settings of the release.
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    models = {"fp16": DeepSpeedFP16Config, "bf16": DeepSpeedBF16Config, "zero_optimization": DeepSpeedZeroConfig}
    names = {
        "activation_checkpointing": _ACTIVATION_CHECKPOINTING_KEYS,
        "torch_autocast": _AUTOCAST_KEYS,
        "data_types": frozenset({"grad_accum_dtype"}),
        "comms_logger": _COMMS_LOGGER_KEYS,
        "flops_profiler": _FLOPS_PROFILER_KEYS,
    }
    for block in (*models, *names):
        section = values.get(block, {})
        if not isinstance(section, dict):
            yield f"{block}: write an object, not {section!r}"
        elif block == "zero_optimization" and section.get("stage", 0) not in (0, 1, 2, 3):
            yield f"zero_optimization.stage: {section['stage']!r} is not 0, 1, 2 or 3"
        elif block in models:
            yield from _model_faults(block, section, models[block])
        else:
            for key in section:
                if key not in names[block]:
                    yield f"unknown key {block + '.' + key!r}: {nearest(key, names[block])}"


def _model_faults(block: str, section: dict[str, Any], model: type[BaseModel]) -> Iterator[str]:
    try:
        model(**section)
    except ValidationError as error:
        for fault in error.errors():
            dotted = ".".join([block, *map(str, fault["loc"])])
            if fault["type"] == "extra_forbidden":
                known = _known_names(model, fault["loc"][:-1])
                yield f"unknown key {dotted!r}" + (f": {nearest(str(fault['loc'][-1]), known)}" if known else "")
            else:
                yield f"{dotted}: {fault['msg'].removeprefix('Value error, ')} (got {fault['input']!r})"


def _known_names(model: type[BaseModel], location: tuple[Any, ...]) -> set[str]:
    """Names and aliases of the fields of the block at a path; empty if DeepSpeed does not declare them."""
    for name in location:
        annotation = model.model_fields[str(name)].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return set()
        model = nested[0]
    return set(model.model_fields) | {field.alias for field in model.model_fields.values() if field.alias}


def _auto_paths(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _auto_paths(value, f"{prefix}.{key}" if prefix else key)
    elif node == "auto":
        yield prefix


def _combination_faults(values: dict[str, Any]) -> Iterator[str]:
    """Faults of settings that are valid one by one but not together."""
    stage = values.get("zero_optimization", {}).get("stage", 0)
    enabled = [name for name in ("fp16", "bf16", "torch_autocast") if values.get(name, {}).get("enabled")]
    if len(enabled) > 1:
        yield f"{' and '.join(enabled)} are both enabled; keep one"
    if "fp16" in enabled and stage == 0:
        yield "fp16 with ZeRO stage 0 trains wrongly (the loss is never scaled); set zero_optimization.stage to 1"
    if "bf16" in enabled and stage == 0:
        yield "bf16 with ZeRO stage 0 saves weights rounded to bf16; set zero_optimization.stage to 1 or more"
    fp32_accumulation = values.get("data_types", {}).get("grad_accum_dtype") == "fp32"
    if "bf16" in enabled and stage == 1 and fp32_accumulation:
        yield (
            "bf16 with fp32 gradient accumulation at ZeRO stage 1 saves checkpoints that DeepSpeed cannot consolidate;"
            " set zero_optimization.stage to 2"
        )
    # Each of the two takes away the check that keeps a step whose gradient is not finite from being taken.
    if values.get("zero_optimization", {}).get("compute_grad_norm") is False:
        yield f"zero_optimization.compute_grad_norm false: {_UNCHECKED}"
    if values.get("bf16", {}).get("check_grad_overflow") is False:
        yield f"bf16.check_grad_overflow false: {_UNCHECKED}"
    autocast_dtype = str(values.get("torch_autocast", {}).get("dtype", "bfloat16")).removeprefix("torch.")
    if "torch_autocast" in enabled and autocast_dtype != "bfloat16":
        yield f"torch_autocast.dtype: {autocast_dtype!r} is not supported; write bfloat16, or use the fp16 block"
    optimizer = values.get("optimizer")
    if stage and isinstance(optimizer, dict) and optimizer.get("type") == "Lamb":
        yield "Lamb needs whole parameters for its trust ratio, but ZeRO splits them; set zero_optimization.stage to 0"
    for key in ("partition_activations", "cpu_checkpointing", "contiguous_memory_optimization"):
        if values.get("activation_checkpointing", {}).get(key):
            yield f"activation_checkpointing.{key}: only plain recomputation is supported; set it to false"


def _optimizer_faults(optimizer: Any) -> Iterator[str]:
    if not isinstance(optimizer, dict):
        yield "optimizer: this block is required; it holds the type and the peak learning rate"
        return
    for key in optimizer:
        if key not in ("type", "params"):
            yield f"unknown key {'optimizer.' + key!r}: {nearest(key, ('type', 'params'))}"
    kind, params = optimizer.get("type"), optimizer.get("params", {})
    if not isinstance(kind, str) or kind not in OPTIMIZER_PARAMS:
        yield f"optimizer.type: {kind!r} is not supported; {nearest(str(kind), OPTIMIZER_PARAMS)}"
        return
    if not isinstance(params, dict):
        yield f"optimizer.params: write an object, not {params!r}"
        return
    for key in params:
        if key not in OPTIMIZER_PARAMS[kind]:
            yield f"unknown key {'optimizer.params.' + key!r}: {nearest(key, OPTIMIZER_PARAMS[kind])}"
    rate = params.get("lr")
    if not _is_number(rate, minimum=0) or rate == 0:
        yield f"optimizer.params.lr: give the peak learning rate as a positive number, not {rate!r}"
    for key in ("eps", "weight_decay"):
        if not _is_number(params.get(key, 0.0), minimum=0):
            yield f"optimizer.params.{key}: a number of at least 0 is required, not {params[key]!r}"
    betas = params.get("betas", [0.9, 0.999])
    if not (isinstance(betas, list) and len(betas) == 2 and all(_is_number(b, minimum=0) and b < 1 for b in betas)):
        yield f"optimizer.params.betas: two numbers from 0 to below 1 are required, not {betas!r}"


def _is_number(value: Any, *, minimum: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= minimum
