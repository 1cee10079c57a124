"""The directory of an unfinished corpus: its plan, its finished parts, and its locks.

``OUTPUT/.partial`` holds, until the manifest is written::

    lock                     locked by whoever writes
    plan.json                inputs, settings and tokenizer; a later run must agree with it
    tokenizer/               the tokenizer, to be moved to its final place
    part-00012/              the shards of a part
    part-00012.json          its marker: counts, hashes, engine; written last, so a part with a marker is whole
    index-00012.npy          ids and content hashes of its records, where duplicates or old versions are dropped
    index-00012.json         hashes of what the index was made of
    near-00012.npy           MinHash bands of its records, where near-duplicates are dropped
    drop-00012.npy           which of its records are dropped, and why
    refused-words            this engine gave wrong ids: the parts that it made are made again
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from bnb_ds.common.files import disk_errors, new_directory, sync, write_synced
from bnb_ds.errors import DataError
from bnb_ds.shards.manifest import TokenizerInfo
from bnb_ds.shards.writer import LOCK_NAME, PARTIAL_DIRECTORY, refuse_foreign

_LOCK_PATIENCE_SECONDS = 3.0  # workers of a killed run outlive it by a moment


class Workspace:
    """One output directory while it is being made; claims it for this process as a context manager.

    Args:
        directory: the output; new, empty, or left by an interrupted run.
        task: name of this task among several that write together; None for a writer that must be alone.

    Raises:
        DataError: the directory holds something else, or another process writes it.
    """

    def __init__(self, directory: str | os.PathLike[str], task: str | None = None) -> None:
        self.directory = Path(directory)
        self.partial = self.directory / PARTIAL_DIRECTORY
        self._task = task
        self._locks: list[BinaryIO] = []
        self._made_directory = False

    def __enter__(self) -> Workspace:
        with disk_errors(self.directory):
            self._made_directory = not self.directory.exists()
            self.directory.mkdir(parents=True, exist_ok=True)
            refuse_foreign(self.directory, had_writer=self.partial.exists())
            self.partial.mkdir(exist_ok=True)
            # Tasks share the directory; a lone writer and the merge want it for themselves.
            self._lock(LOCK_NAME, fcntl.LOCK_EX if self._task is None else fcntl.LOCK_SH)
            if self._task is not None:
                self._lock(f"{LOCK_NAME}-{self._task}", fcntl.LOCK_EX)
            refuse_foreign(self.directory, had_writer=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.partial.exists() and self._task is None and not (self.partial / "plan.json").exists():
            shutil.rmtree(self.partial, ignore_errors=True)
        for lock in self._locks:
            lock.close()
        if self._made_directory:
            with suppress(OSError):  # something is in it: finished or to be continued
                self.directory.rmdir()

    def begin(self, plan: dict[str, Any], tokenizer: TokenizerInfo) -> None:
        """Record what is to be made, or check that it is what an interrupted run was making.

        Raises:
            DataError: that run had other inputs, settings or another tokenizer.
        """
        path = self.partial / "plan.json"
        if path.exists():
            begun = self.plan()
            differing = [key for key in plan if begun.get(key) != plan[key]]
            if differing:
                raise DataError(
                    f"{self.directory}: holds an unfinished run with other {' and '.join(differing)}; "
                    f"repeat its command, or remove {self.partial} to begin anew"
                )
            return
        with disk_errors(self.directory):
            if not (self.partial / "tokenizer").exists():
                try:
                    with new_directory(self.partial / "tokenizer") as directory:
                        tokenizer.save(directory)
                except DataError:
                    if not (self.partial / "tokenizer").exists():  # else another task was faster
                        raise
            self.write("plan.json", plan)

    def plan(self) -> dict[str, Any]:
        """What is being made.

        Raises:
            DataError: nothing is.
        """
        try:
            return json.loads((self.partial / "plan.json").read_bytes())
        except (OSError, ValueError):
            raise DataError(f"{self.directory}: holds no begun corpus; run a `bnb-ds prep` command first") from None

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file of the workspace in one step, durably."""
        self.write_bytes(name, (json.dumps(content, indent=1) + "\n").encode("ascii"))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file of the workspace in one step, durably."""
        temporary = self.partial / f".{name}.{uuid.uuid4().hex}"  # tasks on other hosts may have the same number
        write_synced(temporary, data)
        os.replace(temporary, self.partial / name)
        sync(self.partial)

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the workspace, or None where it does not exist."""
        try:
            return json.loads((self.partial / name).read_bytes())
        except FileNotFoundError:
            return None

    def part_directory(self, part: int) -> Path:
        """Where the shards of a part are written."""
        return self.partial / part_name(part)

    def new_part(self, part: int) -> Path:
        """An empty directory for a part, clear of what an interrupted run left."""
        directory = self.part_directory(part)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        return directory

    def finish_part(self, part: int, marker: dict[str, Any]) -> None:
        """Make the names of a part's files durable (their content is synced when it is written), then its marker."""
        sync(self.part_directory(part))
        sync(self.partial)
        self.write(f"{part_name(part)}.json", marker)

    def refuse_engine(self, name: str) -> None:
        """Make every part that this engine finished, or will finish in another task, an unfinished one.

        Raises:
            DataError: the disk refuses.
        """
        with disk_errors(self.directory):
            self.write(f"refused-{name}", {})

    def is_refused(self, engine: str) -> bool:
        """Whether any task has found this engine to give wrong ids."""
        return (self.partial / f"refused-{engine}").exists()

    def marker(self, part: int) -> dict[str, Any] | None:
        """The marker of a finished part, or None."""
        found = self.read(f"{part_name(part)}.json")
        return None if found is None or self.is_refused(found["engine"]["name"]) else found

    def has_progress(self) -> bool:
        """Whether a part or an index is finished."""
        parts = (int(path.stem.removeprefix("part-")) for path in self.partial.glob("part-*.json"))
        return any(self.marker(part) is not None for part in parts) or any(self.partial.glob("index-*.npy"))

    def discard(self) -> None:
        """Remove everything that this output has so far."""
        for entry in self.partial.iterdir():
            if entry.name != LOCK_NAME:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def close(self) -> None:
        """Remove the workspace of a finished corpus."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def _lock(self, name: str, mode: int) -> None:
        file = open(self.partial / name, "ab")  # noqa: SIM115 -- held as long as the workspace
        self._locks.append(file)
        deadline = time.monotonic() + _LOCK_PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(file, mode | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.close()
                    raise DataError(
                        f"{self.directory}: another process is writing here; wait for it or choose another output"
                    ) from None
                time.sleep(0.1)
            except OSError:
                return  # a file system without locks: two writers at once are then the user's to avoid


def part_name(part: int) -> str:
    """``part-00012``."""
    return f"part-{part:05d}"
