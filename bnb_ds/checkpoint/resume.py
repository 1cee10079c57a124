"""Resume from a checkpoint with another number of ranks or another ZeRO stage, where DeepSpeed can.

DeepSpeed loads a partitioned checkpoint only on the number of ranks that wrote it. For any other number it needs a
*universal* checkpoint, with one file for each parameter and state. Rank 0 makes it next to the original and removes it
after loading.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bnb_ds.checkpoint import store
from bnb_ds.checkpoint.safe_loading import data_only
from bnb_ds.common.children import without_launcher
from bnb_ds.common.files import disk_errors
from bnb_ds.config.deepspeed import DsConfig
from bnb_ds.distributed import ranks
from bnb_ds.errors import CheckpointError

WEIGHTS_ONLY_FLAG = "--resume-weights-only"

#: bytes of a checkpoint from which DeepSpeed's converter gains by processes, each of which imports DeepSpeed first
_WORTH_WORKERS = 1 << 30

Way = Literal["as it is", "universal", "weights only"]


@dataclass(frozen=True)
class Resume:
    """A checkpoint, and the way to resume from it."""

    checkpoint: Path
    way: Way

    def describe(self, ds_config: DsConfig) -> str:
        """One line for the user."""
        if self.way == "as it is":
            return f"from {self.checkpoint}"
        if self.way == "weights only":
            return f"from the weights of {self.checkpoint}, with a fresh optimizer"
        state = store.read_state(self.checkpoint)
        return (
            f"from {self.checkpoint}, converted from {state['world_size']} ranks at ZeRO stage"
            f" {store.stage_of(self.checkpoint)} to {ds_config.world_size} at {ds_config.zero_stage}"
        )


def plan_resume(found: Path, ds_config: DsConfig, *, weights_only: bool) -> Resume:
    """Choose the way to load a checkpoint in this launch.

    Raises:
        CheckpointError: DeepSpeed cannot convert the optimizer's state.
    """
    if weights_only:
        return Resume(found, "weights only")
    old_stage, new_stage = store.stage_of(found), ds_config.zero_stage
    same_layout = old_stage == new_stage or {old_stage, new_stage} == {1, 2}
    if not same_layout:
        raise CheckpointError(
            f"{found}: was written at ZeRO stage {old_stage}, but this launch has stage {new_stage}; DeepSpeed converts"
            f" optimizer states only between stages 1 and 2: set zero_optimization.stage to {old_stage}, or add"
            f" {WEIGHTS_ONLY_FLAG} to continue with a fresh optimizer"
        )
    if new_stage == 0 or store.read_state(found)["world_size"] == ds_config.world_size:
        return Resume(found, "as it is")
    return Resume(found, "universal")


def load_resumed(engine: Any, resume: Resume) -> None:
    """Restore an engine that was built for this way of loading, on all ranks together. Converted files are removed."""
    if resume.way == "as it is":
        store.load(engine, resume.checkpoint)
        return
    universal = ranks.on_main(lambda: convert(resume.checkpoint))
    own_groups = [dict(group) for group in engine.optimizer.param_groups]
    store.load(engine, universal)
    if engine.zero_optimization_stage() == 3:
        _mend_stage_3(engine, own_groups, resume.checkpoint)
    ranks.barrier()
    if ranks.is_main():
        shutil.rmtree(universal.parent, ignore_errors=True)


def _mend_stage_3(engine: Any, own_groups: list[dict[str, Any]], checkpoint: Path) -> None:
    """Correct three faults of DeepSpeed's loading of universal checkpoints at ZeRO stage 3.

    DeepSpeed gives every parameter group the settings of the first group, so biases and norms would decay, and all
    layers have one rate. It gives all states one ``step`` tensor, so the update of each group would advance the step of
    all of them; and its value is the first group's, although layers may have begun at different steps.
    """
    optimizer = engine.optimizer.optimizer
    rates = engine.lr_scheduler.get_last_lr()
    for group, own, rate in zip(optimizer.param_groups, own_groups, rates, strict=True):
        group.update({key: value for key, value in own.items() if key not in ("params", "step")}, lr=rate)
    steps = _steps_of_weights(checkpoint)
    for piece, partition in enumerate(engine.optimizer.fp32_partitioned_groups_flat):
        state = optimizer.state[partition]
        step = steps[engine.optimizer.param_names[engine.optimizer.fp16_groups[piece][0]]]
        if "step" in state:  # some optimizers count in their groups
            state["step"] = step.clone().to(state["step"].device) if torch.is_tensor(step) else step


def _steps_of_weights(checkpoint: Path) -> dict[str, torch.Tensor | int | None]:
    """Name of a weight -> number of its updates, of a checkpoint of ZeRO stage 3."""
    optimizer_file = min(checkpoint.glob("*zero_pp_rank_0_*optim_states.pt"))
    model_file = min(checkpoint.glob("zero_pp_rank_0_*model_states.pt"))
    with data_only(checkpoint):
        states = torch.load(optimizer_file, map_location="cpu", mmap=True)["optimizer_state_dict"]
        shapes = torch.load(model_file, map_location="cpu", mmap=True)["param_shapes"]
    pieces = states["optimizer_state_dict"]["state"]
    return {name: pieces[i].get("step") for i, piece in enumerate(shapes) for name in piece}


def convert(found: Path) -> Path:
    """Write the universal form of a checkpoint next to it, as ``NAME.universal/NAME``, which appears once complete.

    Raises:
        CheckpointError: DeepSpeed's converter fails; the message shows its last line.
        DataError: the disk is full or cannot be written.
    """
    final = found.with_name(f"{found.name}.universal")
    partial = found.with_name(f"{found.name}.universal.partial")
    stage = store.stage_of(found)
    with disk_errors(found.parent):
        for stale in (final, partial):
            if stale.exists():
                shutil.rmtree(stale)
    command = [sys.executable, "-m", "bnb_ds.checkpoint.safe_loading"]
    # The converter also writes a `latest` file next to its output, so both get a directory of their own.
    command += ["--input_folder", str(found), "--output_folder", str(partial / found.name)]
    if stage in (1, 2):
        command.append("--inject_missing_state")  # our parameter groups are not Megatron's
    if sum(file.stat().st_size for file in found.iterdir()) < _WORTH_WORKERS:
        command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    # The converter is no rank of a job: it must not join this job, nor take a GPU.
    environment = without_launcher() | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        shutil.rmtree(partial, ignore_errors=True)
        last = next((line for line in reversed(result.stderr.splitlines()) if line.strip()), "no message")
        raise CheckpointError(
            f"{found}: DeepSpeed cannot convert it for another number of ranks ({last.strip()}); resume with"
            f" {store.read_state(found)['world_size']} ranks, or add {WEIGHTS_ONLY_FLAG}"
        )
    os.replace(partial, final)
    return final / found.name
