"""Rows of a Hugging Face data set, streamed. Only the shards are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from bnb_ds.errors import DataError
from data_prep.sources.documents import Document, Record
from data_prep.sources.text import TextFormat, row_document
from data_prep.sources.units import Unit

_UNIT_BYTES = 1 << 26  # of unknown size: each file of the data set is a part


class HubFile:
    """One file of a data set; its size and hash are those of the rows, known when they have been read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._num_bytes = 0
        self._digest = hashlib.sha256()

    def num_bytes(self) -> int:
        """Zero, because the plan of a corpus does not wait for the network."""
        return 0

    def stamp(self) -> None:
        """None: rows on the network cannot be looked at again without being read."""

    def digest(self, unit: Unit) -> str:
        """SHA-256 (hex) of the rows that were read last."""
        return self._digest.hexdigest()

    def begin(self) -> None:
        """Forget what was read before."""
        self._num_bytes, self._digest = 0, hashlib.sha256()

    def saw(self, text: str) -> None:
        """Take the next row into account."""
        data = text.encode("utf-8")
        self._num_bytes += len(data)
        self._digest.update(len(data).to_bytes(8, "little") + data)

    def manifest_entry(self, sha256: str | None = None) -> dict[str, Any]:
        """Name, bytes of text, and SHA-256 of every text after its length (8 bytes, little-endian)."""
        return {"name": self.name, "bytes": self._num_bytes, "sha256": self._digest.hexdigest()}


class HubSource:
    """A data set of the hub, or a local one by its directory, as a :class:`~data_prep.sources.units.Source`."""

    latest_wins = False

    def __init__(
        self, name: str, config: str | None, split: str, revision: str | None, text_format: TextFormat
    ) -> None:
        import datasets

        try:
            self._rows = datasets.load_dataset(name, config, split=split, revision=revision, streaming=True)
        except Exception as error:  # of the network, of the hub, of the data set: datasets has no common class
            reason = " ".join(str(error).split())[:300]
            raise DataError(f"{name}: datasets cannot load it ({reason}); check --dataset and --config") from None
        if text_format.text_column not in (self._rows.column_names or [text_format.text_column]):
            raise DataError(
                f"{name}: no column {text_format.text_column!r}; choose --text-column from "
                f"{', '.join(self._rows.column_names)}"
            )
        self._format = text_format
        label = "/".join(part for part in (name.rstrip("/").rsplit("/", 2)[-1], config, split) if part)
        self.files = [HubFile(f"{label}#{index}") for index in range(self._rows.num_shards)]
        self.settings: dict[str, Any] = {
            "command": "prep wikipedia",
            "dataset": label,
            "revision": revision,
            "text_column": text_format.text_column,
            "id_column": text_format.id_column,
            "ignore_ids": text_format.ignore_ids,
        }

    def units(self) -> list[Unit]:
        """The files of the data set."""
        return [Unit(index, _UNIT_BYTES) for index in range(len(self.files))]

    def read(self, unit: Unit) -> Iterator[Record]:
        """The rows of one file."""
        file = self.files[unit.file]
        file.begin()
        try:
            rows = self._rows.shard(num_shards=len(self.files), index=unit.file)
            for number, row in enumerate(rows, start=1):
                record = row_document(file.name, f"{file.name}: row {number}", row, self._format)
                if isinstance(record, Document):
                    file.saw(record.text)
                yield record
        except DataError:
            raise
        except Exception as error:  # as above
            reason = " ".join(str(error).split())[:300]
            raise DataError(f"{file.name}: reading failed ({reason}); run the same command again") from None
