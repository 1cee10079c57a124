"""Going on with another number of ranks or another ZeRO stage, as far as DeepSpeed can.

DeepSpeed loads a partitioned checkpoint on the ranks that wrote it; for any other number it needs a *universal*
checkpoint, one file for each parameter and state, which rank 0 makes beside the original and removes once it is loaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bnb_ds import checkpoint, distributed
from bnb_ds.ds_config import DsConfig
from bnb_ds.errors import CheckpointError
from bnb_ds.outputs import disk_errors

WEIGHTS_ONLY_FLAG = "--resume-weights-only"

Way = Literal["as it is", "universal", "weights only"]


@dataclass(frozen=True)
class Resume:
    """A checkpoint and how to go on from it."""

    checkpoint: Path
    way: Way

    def describe(self, ds_config: DsConfig) -> str:
        """One line for the user."""
        if self.way == "as it is":
            return f"from {self.checkpoint}"
        if self.way == "weights only":
            return f"from the weights of {self.checkpoint}, the optimizer anew"
        state = checkpoint.read_state(self.checkpoint)
        return (
            f"from {self.checkpoint}, converted from {state['world_size']} ranks at ZeRO stage {state['zero_stage']} to"
            f" {ds_config.world_size} at {ds_config.zero_stage}"
        )


def plan_resume(found: Path, ds_config: DsConfig, *, weights_only: bool) -> Resume:
    """Choose the way to load a checkpoint in this launch.

    Raises:
        CheckpointError: DeepSpeed cannot carry the optimizer's state over.
    """
    if weights_only:
        return Resume(found, "weights only")
    state = checkpoint.read_state(found)
    old_stage, new_stage = state["zero_stage"], ds_config.zero_stage
    same_layout = old_stage == new_stage or {old_stage, new_stage} == {1, 2}
    if not same_layout:
        raise CheckpointError(
            f"{found}: written at ZeRO stage {old_stage}, this launch has stage {new_stage}, and DeepSpeed converts"
            f" optimizer states between stages 1 and 2 only; set zero_optimization.stage to {old_stage}, or add"
            f" {WEIGHTS_ONLY_FLAG} to go on with a fresh optimizer"
        )
    if new_stage == 0 or state["world_size"] == ds_config.world_size:
        return Resume(found, "as it is")
    return Resume(found, "universal")


@contextmanager
def loadable(resume: Resume) -> Iterator[Path]:
    """The directory that DeepSpeed loads, on every rank; a conversion is gone when the block ends."""
    if resume.way != "universal":
        yield resume.checkpoint
        return
    universal = distributed.on_main(lambda: convert(resume.checkpoint))
    yield universal
    distributed.barrier()
    if distributed.is_main():
        shutil.rmtree(universal, ignore_errors=True)


def convert(found: Path) -> Path:
    """Write the universal form of a checkpoint beside it; the name appears when it is complete.

    Raises:
        CheckpointError: DeepSpeed's converter fails; its last line is shown.
        DataError: the disk refuses.
    """
    final = found.with_name(f"{found.name}.universal")
    partial = found.with_name(f"{found.name}.universal.partial")
    stage = checkpoint.read_state(found)["zero_stage"]
    with disk_errors(found.parent):
        for stale in (final, partial):
            if stale.exists():
                shutil.rmtree(stale)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(found), "--output_folder", str(partial)]
    if stage in (1, 2):
        command.append("--inject_missing_state")  # our parameter groups are not Megatron's
    # The converter is a program of one process: it must neither join this job nor take a GPU.
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in launcher}
    environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        shutil.rmtree(partial, ignore_errors=True)
        last = next((line for line in reversed(result.stderr.splitlines()) if line.strip()), "no message")
        raise CheckpointError(
            f"{found}: DeepSpeed cannot convert it for another number of ranks ({last.strip()}); resume with"
            f" {checkpoint.read_state(found)['world_size']} ranks, or add {WEIGHTS_ONLY_FLAG}"
        )
    os.replace(partial, final)
    return final
