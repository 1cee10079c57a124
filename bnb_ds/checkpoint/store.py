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
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bnb_ds.common.files import disk_errors, sha256_file, sync, write_atomic
from bnb_ds.distributed import ranks
from bnb_ds.errors import CheckpointError, DataError

_MANIFEST = "checkpoint.json"
_NAME = re.compile(r"step_(\d{8})")
_GIB = 2**30
#: of a checkpoint, at most: weights and two moments in fp32, and the model's own copy
BYTES_PER_PARAMETER = 16
#: what torch says when the disk refuses while a file is written
_WRITE_FAILURES = ("PytorchStreamWriter", "inline_container", "No space", "unexpected pos", "write failed")


def step_of(checkpoint: Path) -> int:
    """Optimizer steps done when a checkpoint was written, from its name."""
    return int(_NAME.fullmatch(checkpoint.name)[1])


def whole_checkpoints(directory: Path) -> list[Path]:
    """Finished checkpoints under a directory, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name) and (path / _MANIFEST).is_file())


class CheckpointWriter:
    """Writes the checkpoints of a run, all ranks together.

    Args:
        engine: DeepSpeed engine.
        directory: ``output_dir/checkpoints``.
        keep: newest checkpoints to leave on disk; the best one (lowest ``selection_loss``) stays besides.
        background: hash, sync and publish while training goes on. A crash meanwhile loses this checkpoint only.
    """

    def __init__(self, engine: Any, directory: Path, keep: int, *, background: bool = False) -> None:
        self._engine = engine
        self._directory = directory
        self._keep = keep
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint") if background else None
        self._pending: Future[None] | None = None

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint.

        Args:
            step: optimizer steps done.
            state: what the loop needs to go on; JSON values; ``selection_loss`` is what the best is chosen by (least).

        Returns:
            The checkpoint's directory; in the background it appears there later.

        Raises:
            DataError: the disk refuses, or has too little space left.
        """
        final = self._directory / f"step_{step:08d}"
        partial = self._directory / f"{final.name}.partial"
        state = {
            "step": step,
            "world_size": ranks.world_size(),
            "zero_stage": self._engine.zero_optimization_stage(),
            **state,
        }
        self.finish()
        ranks.on_main(self._prepare)
        with disk_errors(self._directory), _write_failures(self._directory):
            # DeepSpeed's own `latest` moves before the other ranks have finished, hence save_latest=False.
            self._engine.save_checkpoint(str(self._directory), tag=partial.name, client_state={}, save_latest=False)
        ranks.barrier()
        if self._pool is None:
            ranks.on_main(lambda: self._publish(partial, final, state))
        elif ranks.is_main():
            self._pending = self._pool.submit(self._publish, partial, final, state)
        return final

    def finish(self) -> None:
        """Wait until the last checkpoint is published, on every rank; errors of the background surface here."""
        pending, self._pending = self._pending, None
        if self._pool is not None:
            ranks.on_main(lambda: pending.result() if pending is not None else None)

    def _prepare(self) -> None:
        with disk_errors(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            # What a killed run was writing (a checkpoint, or `latest`), removing or converting.
            for stale in (*self._directory.glob("*.partial"), *self._directory.glob("*.universal")):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
            free = shutil.disk_usage(self._directory).free
        needed = self._bytes_needed()
        if free < needed:
            raise DataError(
                f"{self._directory}: a checkpoint takes about {needed / _GIB:.2f} GiB, the disk has {free / _GIB:.2f}"
                " GiB left; free some space or lower intervals.keep_checkpoints, then --resume auto"
            )

    def _bytes_needed(self) -> int:
        for newest in whole_checkpoints(self._directory)[-1:]:
            with suppress(OSError, ValueError, KeyError):  # a damaged one tells nothing
                return sum(file["bytes"] for file in read_state(newest)["files"].values())
        parameters = self._engine.module.parameters()
        return BYTES_PER_PARAMETER * sum(getattr(p, "ds_numel", p.numel()) for p in parameters)

    def _publish(self, partial: Path, final: Path, state: dict[str, Any]) -> None:
        with disk_errors(self._directory):
            _seal(partial, state)
            if final.exists():
                _remove(final)
            os.replace(partial, final)
            sync(self._directory)
            write_atomic(self._directory / "latest", final.name)
            _prune(self._directory, state["step"], self._keep)


def _prune(directory: Path, step: int, keep: int) -> None:
    """Remove old checkpoints but the best, and those beyond ``step``: a run that went back has abandoned them."""
    checkpoints = whole_checkpoints(directory)
    reached = [path for path in checkpoints if step_of(path) <= step]
    kept = [*reached[-keep:], best_checkpoint(reached)]
    for path in checkpoints:
        if path not in kept:
            _remove(path)


def _remove(checkpoint: Path) -> None:
    # Out of sight first: half a checkpoint must not look like a whole one.
    shutil.rmtree(checkpoint.rename(checkpoint.with_name(f"{checkpoint.name}.removed.partial")))


def best_checkpoint(checkpoints: list[Path]) -> Path | None:
    """The one with the lowest selection loss among those that were evaluated."""
    scores = {}
    for path in checkpoints:
        try:
            state = read_state(path)
            # The other two names are those of earlier releases.
            found = (state[name] for name in ("selection_loss", "badness", "eval_loss") if name in state)
            scores[path] = next(found, None)
        except (OSError, ValueError):
            continue  # damaged; whoever loads it is told
    scores = {path: score for path, score in scores.items() if score is not None}
    return min(scores, key=scores.get) if scores else None


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
    """What the writer was told, with the files' sizes and hashes."""
    return json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))


def stage_of(checkpoint: Path) -> int:
    """ZeRO stage that a checkpoint was written at."""
    state = read_state(checkpoint)
    if "zero_stage" in state:
        return state["zero_stage"]
    # The first releases left it to the run's own record.
    resolved = json.loads((checkpoint.parent.parent / "ds_config.resolved.json").read_text(encoding="utf-8"))
    return resolved.get("zero_optimization", {}).get("stage", 0)


def load(engine: Any, directory: Path) -> None:
    """Restore model, optimizer, scheduler and loss scale from DeepSpeed's files, all ranks together.

    Raises:
        CheckpointError: DeepSpeed cannot load them.
    """
    loaded, _ = engine.load_checkpoint(str(directory.parent), tag=directory.name)
    if loaded is None:
        raise CheckpointError(f"{directory}: DeepSpeed cannot load it; resume from an older checkpoint")


@contextmanager
def _write_failures(directory: Path) -> Iterator[None]:
    """torch reports a full disk as a fault of its own."""
    try:
        yield
    except RuntimeError as error:
        if any(sign in str(error) for sign in _WRITE_FAILURES):
            raise DataError(
                f"{directory}: cannot write a checkpoint ({str(error).splitlines()[0]}); the disk is probably full:"
                " free some space, then --resume auto"
            ) from error
        raise


def _seal(partial: Path, state: dict[str, Any]) -> None:
    files = {}
    for path in sorted(path for path in partial.rglob("*") if path.is_file()):
        sync(path)
        files[str(path.relative_to(partial))] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_atomic(partial / _MANIFEST, json.dumps({**state, "files": files}, indent=1))
