"""Finished parts into one shard directory: names and a manifest, no copying."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from bnb_ds.common.files import disk_errors, sync, write_synced
from bnb_ds.errors import DataError
from bnb_ds.shards.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    SPLITS,
    TOKENIZER_DIRECTORY,
    Manifest,
    ManifestHoldout,
    ManifestShard,
    ManifestSource,
    ManifestTokenizer,
    ManifestTotals,
    token_dtype,
)
from data_prep.jobs.workspace import Workspace

BAD_RECORDS_NAME = "bad_records.jsonl"


class NoDocumentsError(DataError):
    """A corpus that leaves nothing to train on."""


def merge(workspace: Workspace) -> Manifest:
    """Write the manifest of a workspace whose parts are all finished, and remove the workspace.

    A merge that is interrupted can be repeated: a file that is not among the parts any more has its final name.

    Raises:
        DataError: parts are missing, or there is nothing to train on, or the disk refuses.
    """
    plan = workspace.plan()
    markers = [workspace.marker(number) for number in range(len(plan["parts"]))]
    missing = [number for number, marker in enumerate(markers) if marker is None]
    if missing:
        raise DataError(
            f"{workspace.directory}: {len(missing)} of {len(markers)} parts are not finished (the first is part "
            f"{missing[0]}); run the tasks of the same `bnb-ds prep` command again"
        )
    manifest = _manifest(plan, markers)
    _refuse_nothing_to_train_on(manifest)
    with disk_errors(workspace.directory):
        _publish(workspace, manifest, markers)
    workspace.close()
    return manifest


def _manifest(plan: dict[str, Any], markers: Sequence[dict[str, Any]]) -> Manifest:
    shards = [ManifestShard.model_validate(shard) for marker in markers for shard in marker["shards"]]
    sources = {int(index): entry for marker in markers for index, entry in marker["sources"].items()}
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


def _publish(workspace: Workspace, manifest: Manifest, markers: Sequence[dict[str, Any]]) -> None:
    for number, marker in enumerate(markers):
        for shard in marker["shards"]:
            entry = ManifestShard.model_validate(shard)
            for name in (entry.tokens_file, entry.offsets_file):
                _move(workspace, f"{workspace.part_directory(number).name}/{name}", name)
    _move(workspace, "tokenizer", TOKENIZER_DIRECTORY)
    bad = [line for marker in markers for line in marker["bad"]]
    if bad:
        lines = "".join(json.dumps({"record": line}) + "\n" for line in bad)
        write_synced(workspace.directory / BAD_RECORDS_NAME, lines.encode("ascii"))
    write_synced(workspace.partial / MANIFEST_NAME, manifest.to_bytes())
    sync(workspace.directory)
    os.replace(workspace.partial / MANIFEST_NAME, workspace.directory / MANIFEST_NAME)
    sync(workspace.directory)


def _move(workspace: Workspace, old: str, new: str) -> None:
    try:
        os.replace(workspace.partial / old, workspace.directory / new)
    except FileNotFoundError:
        if not (workspace.directory / new).exists():
            raise DataError(
                f"{workspace.partial / old}: missing although its part is finished; remove {workspace.partial} "
                "and run the `bnb-ds prep` command again"
            ) from None
