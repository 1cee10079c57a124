"""Dropping records because of other records: old versions, withdrawn ones, exact duplicates and near-duplicates.

Every part notes a few dozen bytes for each of its records. Sorting them gives the decision, which is therefore the same
in every process.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bnb_ds.common.files import disk_errors
from data_prep.jobs.job import Job
from data_prep.jobs.near import BANDS, Signatures, later_ones
from data_prep.jobs.workspace import Workspace
from data_prep.sources.documents import Deletion, Document, Omitted, Record

DROP_REASONS = ("", "superseded", "deleted", "duplicate", "near-duplicate")  # by the number in the drop files
SUPERSEDED, DELETED, DUPLICATE, NEAR_DUPLICATE = 1, 2, 3, 4

_OTHER, _DOCUMENT, _OMITTED, _DELETION = 0, 1, 2, 3
_RECORD = np.dtype([("kind", "u1"), ("version", "<u4"), ("id", "<u8", 2), ("text", "<u8", 2)])


class IndexBuilder:
    """The notes about the records of one part; with ``signatures``, also the bands of its documents."""

    def __init__(self, signatures: Signatures | None = None) -> None:
        self._rows: list[tuple[int, int, bytes, bytes]] = []
        self._signatures = signatures
        self._bands: list[bytes] = []

    def add(self, record: Record) -> None:
        """Note the next record. Bad ones are noted too, so that positions agree."""
        if isinstance(record, Document):
            self._rows.append((_DOCUMENT, record.version, _digest(record.id), _digest(record.text)))
        elif isinstance(record, Omitted):
            # Without an id it can supersede nothing.
            self._rows.append((_OMITTED if record.id else _OTHER, record.version, _digest(record.id), bytes(16)))
        elif isinstance(record, Deletion):
            self._rows.append((_DELETION, 0, _digest(record.id), bytes(16)))
        else:
            self._rows.append((_OTHER, 0, bytes(16), bytes(16)))
        if self._signatures is not None:
            is_document = isinstance(record, Document)
            self._bands.append(self._signatures.bands(record.text) if is_document else bytes(8 * BANDS))

    def bands_to_bytes(self) -> bytes:
        """The content of a file of bands: an ``.npy`` of uint64 [num_records, BANDS]."""
        return _npy(np.frombuffer(b"".join(self._bands), dtype="<u8").reshape(-1, BANDS))

    def to_bytes(self) -> bytes:
        """The content of an index file: an ``.npy`` of records."""
        table = np.zeros(len(self._rows), dtype=_RECORD)
        if self._rows:
            kinds, versions, ids, texts = zip(*self._rows, strict=True)
            table["kind"], table["version"] = kinds, versions
            table["id"] = np.frombuffer(b"".join(ids), dtype="<u8").reshape(-1, 2)
            table["text"] = np.frombuffer(b"".join(texts), dtype="<u8").reshape(-1, 2)
        return _npy(table)


def write_drops(workspace: Workspace, indexes: Sequence[Path], job: Job) -> None:
    """Decide about all records and write every part's drop file; several tasks may do so at once, with equal bytes."""
    tables = [np.load(path) for path in indexes]
    table = np.concatenate(tables)
    drops = decide(table, latest_wins=job.source.latest_wins, duplicates=job.options.drop_duplicates)
    if job.options.drop_near_duplicates:
        bands = np.concatenate([np.load(job.near_path(number)) for number in range(len(tables))])
        rows = np.flatnonzero((table["kind"] == _DOCUMENT) & (drops == 0))
        drops[rows[later_ones(bands[rows])]] = NEAR_DUPLICATE
    ends = np.cumsum([len(table) for table in tables])
    with disk_errors(workspace.directory):
        for number, part in enumerate(np.split(drops, ends[:-1])):
            workspace.write_bytes(job.drops_path(number).name, _npy(part))


def decide(table: np.ndarray, *, latest_wins: bool, duplicates: bool) -> np.ndarray:
    """Why each record of the corpus, in its order, is dropped.

    Args:
        table: the index of all parts [num_records].
        latest_wins: of the records of an id the one of the highest version stays, of equal ones the last; a deletion
            removes what came before it.
        duplicates: of the documents of one text that are left the first stays.

    Returns:
        uint8 [num_records], a place in :data:`DROP_REASONS`.
    """
    drops = np.zeros(len(table), dtype=np.uint8)
    kind = table["kind"]
    if latest_wins:
        rows = np.flatnonzero(kind != _OTHER)
        key = table["id"][rows]
        order = np.lexsort((rows, key[:, 1], key[:, 0]))
        rows, key = rows[order], key[order]
        group = np.cumsum(np.append(True, (key[1:] != key[:-1]).any(axis=1))[: len(rows)]) - 1
        last_deletion = np.full(group[-1] + 1 if len(group) else 0, -1, dtype=np.int64)
        is_deletion = kind[rows] == _DELETION
        np.maximum.at(last_deletion, group[is_deletion], rows[is_deletion])
        is_deleted = rows < last_deletion[group]
        drops[rows[is_deleted & ~is_deletion]] = DELETED
        stays = ~is_deleted & ~is_deletion
        rows, group = rows[stays], group[stays]
        order = np.lexsort((rows, table["version"][rows], group))
        rows, group = rows[order], group[order]
        is_last = np.append(group[1:] != group[:-1], True)[: len(rows)]
        drops[rows[~is_last]] = SUPERSEDED
    if duplicates:
        rows = np.flatnonzero((kind == _DOCUMENT) & (drops == 0))
        text = table["text"][rows]
        order = np.lexsort((rows, text[:, 1], text[:, 0]))
        rows, text = rows[order], text[order]
        drops[rows[1:][(text[1:] == text[:-1]).all(axis=1)]] = DUPLICATE
    return drops


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
