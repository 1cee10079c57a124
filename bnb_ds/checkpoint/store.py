"""Write, find and load checkpoints; an incomplete checkpoint is never used.

DeepSpeed writes its files into ``step_00000100.partial``. When every rank has written, rank 0 records the size and hash
of each file, renames the directory to its final name, and then updates ``latest``. After a crash at any moment the
previous checkpoints are untouched, and the new one is ignored.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bnb_ds.checkpoint.safe_loading import data_only, stages_by_value
from bnb_ds.common.files import disk_errors, sha256_file, sync, write_atomic
from bnb_ds.distributed import ranks
from bnb_ds.errors import CheckpointError, DataError, NonFiniteLossError

_MANIFEST = "checkpoint.json"
_NAME = re.compile(r"step_(\d{8})")
_GIB = 2**30
#: upper bound for a checkpoint: weights and two moments in fp32, and the model's own copy
BYTES_PER_PARAMETER = 16
#: the same for a weight that is not trained: as it is, and at ZeRO stage 2 and later once more
BYTES_PER_FROZEN_PARAMETER = 8
#: parts of torch's error messages when a file cannot be written
_WRITE_FAILURES = ("PytorchStreamWriter", "inline_container", "No space", "unexpected pos", "write failed")

#: what using the state of a damaged checkpoint can raise
_DAMAGED_STATE = (OSError, ValueError, LookupError, TypeError, AttributeError)


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps of a checkpoint, read from its name."""
    return int(_NAME.fullmatch(checkpoint.name)[1])


def whole_checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints in a directory, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name) and (path / _MANIFEST).is_file())


class CheckpointWriter:
    """Writes the checkpoints of a run; all ranks call it together.

    Args:
        engine: the DeepSpeed engine.
        directory: ``output_dir/checkpoints``.
        keep: number of newest checkpoints to keep on disk; the best one (lowest ``selection_loss``) is kept as well.
        background: hash, sync and publish while training continues. A crash in between loses only this checkpoint.
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
            The checkpoint's directory. In the background mode it appears later.

        Raises:
            DataError: the disk cannot be written, or has too little free space.
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
        self._refuse_spoiled_weights(step)
        ranks.on_main(self._prepare)
        with disk_errors(self._directory), _write_failures(self._directory), stages_by_value():
            # DeepSpeed would update ``latest`` before the other ranks have finished, hence save_latest=False.
            self._engine.save_checkpoint(str(self._directory), tag=partial.name, client_state={}, save_latest=False)
        ranks.barrier()
        if self._pool is None:
            ranks.on_main(lambda: self._publish(partial, final, state))
        elif ranks.is_main():
            self._pending = self._pool.submit(self._publish, partial, final, state)
        return final

    def score(self, step: int, state: dict[str, Any]) -> None:
        """Add what an evaluation found to the checkpoint of its step, all ranks together.

        A run that started from another run's checkpoint has none of its own at that step; it is written now.

        Args:
            step: as in `save`.
            state: as in `save`, complete.

        Raises:
            DataError: the disk refuses.
        """
        self.finish()
        final = self._directory / f"step_{step:08d}"
        if not ranks.on_main(lambda: (final / _MANIFEST).is_file()):
            self.save(step, state)
            return
        ranks.on_main(lambda: self._rewrite(final, state))

    def _rewrite(self, final: Path, state: dict[str, Any]) -> None:
        with disk_errors(self._directory):
            write_atomic(final / _MANIFEST, json.dumps({**read_state(final), **state}, indent=1))
            _prune(self._directory, step_of(final), self._keep)

    def newest_before(self, step: int) -> Path | None:
        """The newest intact checkpoint of an earlier step; on rank 0."""
        earlier = [path for path in whole_checkpoints(self._directory) if step_of(path) < step]
        return next((path for path in reversed(earlier) if find_damage(path) is None), None)

    def finish(self) -> None:
        """Wait on every rank until the last checkpoint is published. Errors of the background are raised here."""
        pending, self._pending = self._pending, None
        if self._pool is not None:
            ranks.on_main(lambda: pending.result() if pending is not None else None)

    def _refuse_spoiled_weights(self, step: int) -> None:
        """A checkpoint of weights that are not finite would become the newest, and push the good ones out."""
        # At ZeRO stage 3 a rank holds its pieces only.
        pieces = ((name, getattr(p, "ds_tensor", p)) for name, p in self._engine.module.named_parameters())
        spoiled = next((name for name, piece in pieces if not bool(piece.detach().isfinite().all())), None)
        found = next(filter(None, ranks.gather(spoiled)), None)
        if found is not None:
            raise ranks.reported_by_rank_0(
                NonFiniteLossError(
                    f"step {step}: the weights are not finite (the first is {found}); no checkpoint was written; lower"
                    " the learning rate or clip gradients, then --resume auto --resume-weights-only starts from the"
                    " checkpoint before"
                )
            )

    def _prepare(self) -> None:
        with disk_errors(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            # Left over by a killed run: a checkpoint (or ``latest``) that was being written, removed or converted.
            for stale in (*self._directory.glob("*.partial"), *self._directory.glob("*.universal")):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
            free = shutil.disk_usage(self._directory).free
        needed = self._bytes_needed()
        if free < needed:
            raise DataError(
                f"{self._directory}: a checkpoint takes about {needed / _GIB:.2f} GiB, but the disk has only"
                f" {free / _GIB:.2f} GiB left; free some space or lower intervals.keep_checkpoints, then --resume auto"
            )

    def _bytes_needed(self) -> int:
        for newest in whole_checkpoints(self._directory)[-1:]:
            with suppress(*_DAMAGED_STATE):  # its checkpoint has no known size
                return sum(file["bytes"] for file in read_state(newest)["files"].values())
        return sum(
            (BYTES_PER_PARAMETER if p.requires_grad else BYTES_PER_FROZEN_PARAMETER) * getattr(p, "ds_numel", p.numel())
            for p in self._engine.module.parameters()
        )

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
    """Remove old checkpoints except the best, and those after ``step``, which a run that went back has abandoned."""
    checkpoints = whole_checkpoints(directory)
    reached = [path for path in checkpoints if step_of(path) <= step]
    kept = [*reached[-keep:], best_checkpoint(reached)]
    for path in checkpoints:
        if path not in kept:
            _remove(path)


def _remove(checkpoint: Path) -> None:
    # Rename it first: a partly removed checkpoint must not look complete.
    shutil.rmtree(checkpoint.rename(checkpoint.with_name(f"{checkpoint.name}.removed.partial")))


def best_checkpoint(checkpoints: list[Path]) -> Path | None:
    """The one with the lowest selection loss among those that were evaluated."""
    scores = {path: selection_loss(path) for path in checkpoints}
    scores = {path: score for path, score in scores.items() if score is not None}
    return min(scores, key=scores.get) if scores else None


def selection_loss(checkpoint: Path) -> float | None:
    """What the best checkpoint has least of; None if it was not evaluated, or if its state cannot be read."""
    try:
        state = dict(read_state(checkpoint))
    except (OSError, ValueError, TypeError):
        return None  # damaged; whoever loads it is told
    # The other two names are those of earlier releases.
    found = next((state[name] for name in ("selection_loss", "badness", "eval_loss") if name in state), None)
    # A score that is not a number wins nowhere.
    is_number = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
    return found if is_number else None


def newest_intact(directory: Path) -> tuple[Path | None, list[str]]:
    """Find the newest intact checkpoint: all files are present and have the recorded hashes.

    Returns:
        The checkpoint, or None if nothing was saved yet; and one line for each damaged checkpoint that was skipped.

    Raises:
        CheckpointError: all checkpoints are damaged.
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
    """A description of the damage of a checkpoint, or None if it is intact."""
    try:
        files = read_state(checkpoint)["files"].items()
        recorded = [(name, file["bytes"], file["sha256"]) for name, file in files]
    except _DAMAGED_STATE:
        return f"{_MANIFEST} cannot be read"
    for name, num_bytes, sha256 in recorded:
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != num_bytes:
            return f"{name} has {path.stat().st_size} bytes instead of {num_bytes}"
        if sha256_file(path) != sha256:
            return f"{name} has changed since it was written"
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state that was given to `CheckpointWriter.save`, and the sizes and hashes of the files."""
    return json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))


def stage_of(checkpoint: Path) -> int:
    """The ZeRO stage at which a checkpoint was written."""
    state = read_state(checkpoint)
    if "zero_stage" in state:
        return state["zero_stage"]
    # The first releases recorded the stage only in the run's directory.
    resolved = json.loads((checkpoint.parent.parent / "ds_config.resolved.json").read_text(encoding="utf-8"))
    return resolved.get("zero_optimization", {}).get("stage", 0)


def load(engine: Any, directory: Path) -> None:
    """Restore model, optimizer, scheduler and loss scale from DeepSpeed's files; all ranks call it together.

    Raises:
        CheckpointError: DeepSpeed cannot load them.
    """
    with data_only(directory):
        loaded, _ = engine.load_checkpoint(str(directory.parent), tag=directory.name)
    if loaded is None:
        raise CheckpointError(f"{directory}: DeepSpeed cannot load it; resume from an older checkpoint")


@contextmanager
def _write_failures(directory: Path) -> Iterator[None]:
    """Turn torch's RuntimeError for a full disk into a DataError."""
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
