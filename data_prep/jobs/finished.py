"""A run whose output is finished already, such as a job that a scheduler starts a second time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnb_ds.errors import DataError
from bnb_ds.shards.manifest import MANIFEST_NAME, Manifest
from bnb_ds.shards.reader import read_manifest
from bnb_ds.shards.writer import PARTIAL_DIRECTORY


def finished(directory: str | os.PathLike[str]) -> Manifest | None:
    """The manifest of a finished shard directory, or None; clears away what a run killed at its very end left.

    Raises:
        DataError: the manifest is damaged.
    """
    directory = Path(directory)
    if not (directory / MANIFEST_NAME).exists():
        return None
    manifest = read_manifest(directory)
    shutil.rmtree(directory / PARTIAL_DIRECTORY, ignore_errors=True)
    return manifest


def refuse_other_work(
    directory: str | os.PathLike[str], manifest: Manifest, plan: dict[str, Any], files: Sequence[Any]
) -> None:
    """Raise DataError unless a finished directory is what a plan would make of its inputs.

    Args:
        directory: named in the error.
        manifest: of the finished directory.
        plan: what the run was asked to do.
        files: the inputs to compare; they are read.
    """
    stated = manifest.model_dump()
    differing = [key for key in ("settings", "holdout", "tokenizer", "special_ids") if stated[key] != plan[key]]
    if [source.name for source in manifest.sources] != [entry["name"] for entry in plan["inputs"]]:
        differing.append("inputs")
    else:
        entries = {source.name: source.model_dump() for source in manifest.sources}
        # What is streamed from a network has no stamp, and is not read again.
        if any(file.manifest_entry() != entries[file.name] for file in files if file.stamp() is not None):
            differing.append("inputs")
    if differing:
        raise DataError(
            f"{directory}: already holds finished shards, made with other {' and '.join(differing)}; remove them or "
            "choose another output"
        )
