"""Joining finished parts into one shard directory. Files are renamed, not copied."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from bnb_ds.common.files import disk_errors, sync, write_synced
from bnb_ds.errors import DataError
from bnb_ds.shards.manifest import (
    BAD_RECORDS_NAME,
    FORMAT_VERSION,
    MANIFEST_NAME,
    SEAL_NAME,
    SPLITS,
    TOKENIZER_DIRECTORY,
    Manifest,
    ManifestEngine,
    ManifestHoldout,
    ManifestShard,
    ManifestSource,
    ManifestTokenizer,
    ManifestTotals,
    describe_files,
    token_dtype,
    write_manifest,
)
from data_prep.jobs.workspace import Workspace


class NoDocumentsError(DataError):
    """The corpus has no documents to train on."""


def merge(workspace: Workspace) -> Manifest:
    """Write the manifest of a workspace whose parts are all finished, and remove the workspace.

    A merge that is interrupted can be repeated: a file that is not among the parts any more has its final name.

    Raises:
        DataError: parts are missing, or there is nothing to train on, or the disk refuses.
    """
    plan = workspace.plan()
    if plan.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{workspace.directory}: was begun by another version of bnb_ds; finish it with that one, or remove "
            f"{workspace.partial} and run the `bnb-ds prep` command again"
        )
    markers = [workspace.marker(number) for number in range(len(plan["parts"]))]
    missing = [number for number, marker in enumerate(markers) if marker is None]
    if missing:
        raise DataError(
            f"{workspace.directory}: {len(missing)} of {len(markers)} parts are not finished (the first is part "
            f"{missing[0]}); run the tasks of the same `bnb-ds prep` command again"
        )
    _refuse_mixed(workspace, plan, markers)
    manifest = _manifest(plan, markers)
    _refuse_nothing_to_train_on(manifest)
    with disk_errors(workspace.directory):
        manifest = _publish(workspace, manifest, markers)
    workspace.close()
    return manifest


def _refuse_mixed(workspace: Workspace, plan: dict[str, Any], markers: Sequence[dict[str, Any]]) -> None:
    """Raise DataError if parts that share a file were made of different contents of it."""
    expected = {int(index): iter(found["units"]) for marker in markers for index, found in marker["sources"].items()}
    for part, marker in zip(plan["parts"], markers, strict=True):
        for (file, *_), digest in zip(part, marker["units"], strict=True):
            if next(expected[file]) != digest:
                raise DataError(
                    f"{plan['inputs'][file]['name']}: changed between the parts that were made of it; remove "
                    f"{workspace.partial} and run the `bnb-ds prep` command again"
                )


def _manifest(plan: dict[str, Any], markers: Sequence[dict[str, Any]]) -> Manifest:
    shards = [ManifestShard.model_validate(shard) for marker in markers for shard in marker["shards"]]
    sources = {int(index): found["entry"] for marker in markers for index, found in marker["sources"].items()}
    engines = {json.dumps(marker["engine"], sort_keys=True): marker["engine"] for marker in markers}
    skipped: Counter[str] = Counter()
    for marker in markers:
        skipped.update(marker["skipped"])
    return Manifest(
        format_version=FORMAT_VERSION,
        dtype=token_dtype(plan["tokenizer"]["vocab_size"]).name,
        tokenizer=ManifestTokenizer.model_validate(plan["tokenizer"]),
        special_ids=plan["special_ids"],
        sources=[ManifestSource.model_validate(sources[index]) for index in range(len(plan["inputs"]))],
        shards=[shard for split in SPLITS for shard in shards if shard.split == split],
        holdout=ManifestHoldout.model_validate(plan["holdout"]),
        settings=plan["settings"],
        totals=ManifestTotals(
            documents={split: sum(marker["documents"][split] for marker in markers) for split in SPLITS},
            tokens={split: sum(marker["tokens"][split] for marker in markers) for split in SPLITS},
            skipped=dict(sorted(skipped.items())),
        ),
        engines=[ManifestEngine.model_validate(engines[key]) for key in sorted(engines)],
    )


def _refuse_nothing_to_train_on(manifest: Manifest) -> None:
    names = [source.name for source in manifest.sources]
    shown = ", ".join([*names[:3], "..."] if len(names) > 3 else names)
    totals = manifest.totals
    if sum(totals.documents.values()) == 0:
        counts = [f"{count} {reason}" for reason, count in totals.skipped.items() if reason != "empty"]
        empty = f"{totals.skipped.get('empty', 0)} empty documents"
        raise NoDocumentsError(f"{shown}: no text ({', '.join([empty, *counts])}); choose another --input")
    if totals.documents["train"] == 0:
        raise NoDocumentsError(f"{shown}: every document was held out; give more documents or a lower --holdout")


def _publish(workspace: Workspace, manifest: Manifest, markers: Sequence[dict[str, Any]]) -> Manifest:
    for number, marker in enumerate(markers):
        for shard in marker["shards"]:
            entry = ManifestShard.model_validate(shard)
            for name in (entry.tokens_file, entry.offsets_file):
                _move(workspace, f"{workspace.part_directory(number).name}/{name}", name)
    _move(workspace, "tokenizer", TOKENIZER_DIRECTORY)
    bad = [line for marker in markers for line in marker["bad"]]
    if bad:
        lines = "".join(json.dumps({"record": line}) + "\n" for line in bad)
        write_synced(workspace.partial / BAD_RECORDS_NAME, lines.encode("ascii"))
        _move(workspace, BAD_RECORDS_NAME, BAD_RECORDS_NAME)
    names = [TOKENIZER_DIRECTORY, *([BAD_RECORDS_NAME] if bad else [])]
    manifest = manifest.model_copy(update={"files": describe_files(workspace.directory, names)})
    write_manifest(workspace.partial, manifest)
    _move(workspace, SEAL_NAME, SEAL_NAME)
    sync(workspace.directory)
    os.replace(workspace.partial / MANIFEST_NAME, workspace.directory / MANIFEST_NAME)
    sync(workspace.directory)
    return manifest


def _move(workspace: Workspace, old: str, new: str) -> None:
    try:
        os.replace(workspace.partial / old, workspace.directory / new)
    except FileNotFoundError:
        if not (workspace.directory / new).exists():
            raise DataError(
                f"{workspace.partial / old}: missing although its part is finished; remove {workspace.partial} "
                "and run the `bnb-ds prep` command again"
            ) from None
