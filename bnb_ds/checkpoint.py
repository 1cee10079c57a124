"""Checkpoints that are whole or ignored.

DeepSpeed writes its files into ``step_00000100.partial``; once every rank has written and rank 0 has recorded the size
and hash of each file, the directory takes its final name in one rename, and only then does ``latest`` move. A crash at
any moment leaves the previous checkpoints untouched and the new one invisible.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from bnb_ds import distributed
from bnb_ds.errors import CheckpointError
from bnb_ds.files import sha256_file, sync, write_atomic
from bnb_ds.outputs import disk_errors

_MANIFEST = "checkpoint.json"
_NAME = re.compile(r"step_(\d{8})")


def step_of(checkpoint: Path) -> int:
    """Optimizer steps done when a checkpoint was written, from its name."""
    return int(_NAME.fullmatch(checkpoint.name)[1])


def whole_checkpoints(directory: Path) -> list[Path]:
    """Finished checkpoints under a directory, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name) and (path / _MANIFEST).is_file())


def save(engine: Any, directory: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint, all ranks together.

    Args:
        engine: DeepSpeed engine.
        directory: ``output_dir/checkpoints``.
        step: optimizer steps done.
        state: what the loop needs to go on; JSON values.
        keep: newest checkpoints to leave on disk, this one included.

    Returns:
        The checkpoint's directory.
    """
    final = directory / f"step_{step:08d}"
    partial = directory / f"{final.name}.partial"

    def prepare() -> None:
        with disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            for stale in directory.glob("*.partial"):  # what a killed run was writing: a checkpoint, or `latest`
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()

    def publish() -> None:
        with disk_errors(directory):
            _seal(partial, {"step": step, "world_size": distributed.world_size(), **state})
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            write_atomic(directory / "latest", final.name)
            _prune(directory, step, keep)

    distributed.on_main(prepare)
    with disk_errors(directory):
        # DeepSpeed's own `latest` moves before the other ranks have finished, hence save_latest=False.
        engine.save_checkpoint(str(directory), tag=partial.name, client_state={}, save_latest=False)
    distributed.barrier()
    distributed.on_main(publish)
    return final


def _prune(directory: Path, step: int, keep: int) -> None:
    """Remove old checkpoints, and those beyond ``step``: a run that went back and on has abandoned them."""
    checkpoints = whole_checkpoints(directory)
    kept = [path for path in checkpoints if step_of(path) <= step][-keep:]
    for path in checkpoints:
        if path not in kept:
            shutil.rmtree(path)


def newest_intact(directory: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are all there with the recorded hashes, and a line for each one passed over.

    Returns:
        None and no lines where nothing has been saved yet.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    passed_over = []
    for checkpoint in reversed(whole_checkpoints(directory)):
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint, [f"{line}; an older checkpoint is used" for line in passed_over]
        passed_over.append(f"{checkpoint}: {damage}")
    if passed_over:
        raise CheckpointError(
            f"{'; '.join(passed_over)}: no checkpoint is intact; restore one, or start again in another output_dir"
        )
    return None, []


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        files = read_state(checkpoint)["files"]
    except (OSError, ValueError, KeyError):
        return f"{_MANIFEST} cannot be read"
    for name, recorded in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != recorded["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {recorded['bytes']}"
        if sha256_file(path) != recorded["sha256"]:
            return f"{name} has changed since it was written"
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What :func:`save` was told, with the files' sizes and hashes."""
    return json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))


def load(engine: Any, checkpoint: Path) -> dict[str, Any]:
    """Restore model, optimizer, scheduler and loss scale; return the loop's state.

    Raises:
        CheckpointError: it was written by another number of ranks.
    """
    state = read_state(checkpoint)
    if state["world_size"] != distributed.world_size() and engine.zero_optimization_stage() > 0:
        raise CheckpointError(
            f"{checkpoint}: written by {state['world_size']} ranks, this launch has {distributed.world_size()};"
            f" resume with {state['world_size']} ranks, or start a new output_dir from the exported model"
        )
    loaded, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    if loaded is None:
        raise CheckpointError(f"{checkpoint}: DeepSpeed cannot load it; resume from an older checkpoint")
    return state


def _seal(partial: Path, state: dict[str, Any]) -> None:
    files = {}
    for path in sorted(path for path in partial.rglob("*") if path.is_file()):
        sync(path)
        files[str(path.relative_to(partial))] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_atomic(partial / _MANIFEST, json.dumps({**state, "files": files}, indent=1))
