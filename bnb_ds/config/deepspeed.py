"""Load and check a DeepSpeed JSON, and complete it for the number of ranks of this launch.

The JSON holds every setting that DeepSpeed reads: global and micro batch, precision, clipping, ZeRO, optimizer with
peak learning rate, activation checkpointing and communication. ``gradient_accumulation_steps`` is derived from the
global batch, the micro batch and the world size, so one file works for any number of GPUs. Without a micro batch, each
rank takes its whole share of the batch at once, as in DeepSpeed. DeepSpeed ignores unknown top-level keys, so they are
refused here. All faults of a file are reported together, before any GPU is used.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnb_ds.common.shipped import find_ds_config
from bnb_ds.config.deepspeed_rules import find_faults
from bnb_ds.errors import ConfigError


@dataclass(frozen=True)
class DsConfig:
    """A checked DeepSpeed configuration for a known number of ranks."""

    path: Path
    world_size: int
    #: the completed configuration, as passed to DeepSpeed
    values: dict[str, Any]

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step over all ranks."""
        return self.values["train_batch_size"]

    @property
    def micro_batch(self) -> int:
        """Samples per forward and backward pass on one rank."""
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
            return "bf16"
        return "fp32"

    @property
    def optimizer(self) -> dict[str, Any]:
        return self.values["optimizer"]

    @property
    def offloads_optimizer(self) -> bool:
        offload = self.values.get("zero_optimization", {}).get("offload_optimizer") or {}
        return offload.get("device", "none") != "none"


def load_ds_config(path: str | Path, world_size: int) -> DsConfig:
    """Load, check and complete a DeepSpeed JSON.

    Args:
        path: what ``--deepspeed-config`` names: a file, or a shipped JSON (`bnb_ds.common.shipped`).
        world_size: ranks of this launch.

    Raises:
        ConfigError: the message names the file and every fault in it, each with its remedy.
    """
    path = find_ds_config(path)
    values = _read_json(path)
    faults = list(find_faults(values))
    if not faults:
        faults = list(_batch_faults(values, world_size))
    if faults:
        raise ConfigError(f"{path}: " + "; ".join(faults))
    completed = copy.deepcopy(values)
    share = values["train_batch_size"] // world_size
    completed.setdefault("train_micro_batch_size_per_gpu", share)
    completed["gradient_accumulation_steps"] = share // completed["train_micro_batch_size_per_gpu"]
    # DeepSpeed's progress lines repeat ours. A user who wants them sets these keys in the file.
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
        raise ConfigError(f"{path}: no such DeepSpeed JSON; `bnb-ds recipes` lists the shipped ones") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON at line {error.lineno}: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a DeepSpeed JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a DeepSpeed JSON holds an object at the top level; this file does not")
    return values


def _batch_faults(values: dict[str, Any], world_size: int) -> Iterator[str]:
    total = values.get("train_batch_size")
    micro = values.get("train_micro_batch_size_per_gpu", 1)
    for key, value in {"train_batch_size": total, "train_micro_batch_size_per_gpu": micro}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            yield f"{key}: a positive whole number is required, not {value!r}"
            return
    if total % (micro * world_size) == 0:
        return
    if total % world_size:
        together = micro * world_size
        multiple = -(-total // together) * together
        yield f"train_batch_size {total} cannot be divided among {world_size} ranks; the next larger one is {multiple}"
        return
    per_rank = total // world_size
    fitting = ", ".join(str(m) for m in range(1, per_rank + 1) if per_rank % m == 0)
    yield (
        f"train_batch_size {total} is not a multiple of train_micro_batch_size_per_gpu {micro} x {world_size} ranks; "
        f"micro batches that fit: {fitting}"
    )
