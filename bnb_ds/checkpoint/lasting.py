"""Which settings a run must keep from launch to launch, and which may change.

A setting may change if the steps that are still to come are the same without the change, or if nothing of the training
depends on it.
"""

from __future__ import annotations

from typing import Any

EXTEND_FLAG = "--extend"

#: fields of a recipe that may change at any launch, and why
FREE_RECIPE_FIELDS = {
    "output_dir": "where the run lies",
    "intervals": "when it logs, evaluates and saves",
    "faults": "how long ranks wait for each other",
    "stragglers": "when a slow rank is named",
    "tracking": "where its numbers go",
    "loader": "how a step's samples are grouped",
    "data.shards": "the fingerprint says whether the data is the same",
    "data.train": "the fingerprint says whether the data is the same",
    "data.validation": "the fingerprint says whether the data is the same",
    "data.test": "the fingerprint says whether the data is the same",
    "data.validation_matched": "the fingerprint says whether the data is the same",
    "data.validation_mismatched": "the fingerprint says whether the data is the same",
    "data.documents": "the fingerprint says whether the data is the same",
    "data.tokenizer": "the fingerprint says whether it gives the same ids",
    "data.target_tokenizer": "the fingerprint says whether it gives the same ids",
    "data.cache_dir": "where tokenised data lies",
    "selection.patience": "when the run gives up",
}
#: fields that decide how long the run is, and with it the learning rate of each step
_LENGTH_FIELDS = ("steps", "epochs", "schedule")

_FREE_DS_KEYS = (
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "steps_per_print",
    "log_level",
    "wall_clock_breakdown",
    "memory_breakdown",
    "flops_profiler",
    "comms_logger",
    "dump_state",
    "disable_python_gc",
)
# ZeRO's stage and buffer sizes change how numbers are stored and sent, not the numbers.
_FREE_ZERO_KEYS = (
    "stage",
    "overlap_comm",
    "contiguous_gradients",
    "reduce_scatter",
    "reduce_bucket_size",
    "allgather_partitions",
    "allgather_bucket_size",
    "round_robin_gradients",
    "sub_group_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
)


def lasting_recipe(values: dict[str, Any], *, extend: bool = False) -> dict[str, Any]:
    """The part of a recipe that must stay as it is.

    Args:
        values: a recipe as nested dictionaries.
        extend: the launch may change the length of the run.
    """
    free = list(FREE_RECIPE_FIELDS)
    if extend:
        free += _LENGTH_FIELDS
    elif _is_of_any_length(values):
        free += ("steps", "epochs")
    for field in free:
        values = _without(values, field.split("."))
    return values


def lasting_ds_config(values: dict[str, Any]) -> dict[str, Any]:
    """The part of a DeepSpeed configuration that must stay as it is."""
    zero = {key: value for key, value in values.get("zero_optimization", {}).items() if key not in _FREE_ZERO_KEYS}
    kept = {key: value for key, value in values.items() if key not in _FREE_DS_KEYS}
    return {**kept, "zero_optimization": zero}


def _is_of_any_length(recipe: dict[str, Any]) -> bool:
    """Whether a step is the same, however many there are."""
    schedule, glancing = recipe.get("schedule", {}), recipe.get("glancing")
    constant = schedule.get("decay") == "constant" and not schedule.get("warmup_ratio")
    # Without steps of its own, glancing goes from its first to its last ratio over the whole run.
    glances_alike = glancing is None or bool(glancing.get("steps")) or glancing.get("start") == glancing.get("end")
    return constant and glances_alike


def _without(values: dict[str, Any], path: list[str]) -> dict[str, Any]:
    head, *rest = path
    if head not in values:
        return values
    if rest and isinstance(values[head], dict):
        return {**values, head: _without(values[head], rest)}
    return {key: value for key, value in values.items() if key != head}
