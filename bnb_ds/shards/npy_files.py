"""Writes documents into the token and offset files of a shard directory."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import numpy as np

from bnb_ds.common.files import sync_file
from bnb_ds.shards.manifest import OFFSET_DTYPE, SPLITS, ManifestShard, Split, refused_ids, token_dtype


def numbered(split: str, index: int) -> str:
    """``train-00000``, ``train-00001``, ..."""
    return f"{split}-{index:05d}"


class ShardFiles:
    """Collects documents split by split and writes a pair of files whenever a shard is full.

    Args:
        directory: an existing directory that only this writer uses.
        vocab_size: every id is below it. It decides how many bytes a token takes.
        special_ids: ids of the special tokens. Documents that hold ``pad``, ``cls``, ``sep`` or ``mask`` are refused.
        max_tokens: most tokens of a shard. Documents are never cut, so a longer document gets a shard of its own.
        name: gives a shard's name from its split and its index in the split.
    """

    def __init__(
        self,
        directory: Path,
        *,
        vocab_size: int,
        special_ids: Mapping[str, int],
        max_tokens: int,
        name: Callable[[str, int], str] = numbered,
    ) -> None:
        self._directory = directory
        self._dtype = token_dtype(vocab_size)
        self._max_tokens = max_tokens
        self._name = name
        # With this table, one look-up per document finds special tokens.
        self._is_refused = np.zeros(vocab_size, dtype=bool)
        self._is_refused[refused_ids(special_ids)] = True
        self._pending: dict[Split, list[np.ndarray]] = {split: [] for split in SPLITS}
        self._pending_tokens = dict.fromkeys(SPLITS, 0)
        self._shards: dict[Split, list[ManifestShard]] = {split: [] for split in SPLITS}

    @property
    def num_documents(self) -> dict[Split, int]:
        """Documents added so far, by split."""
        finished = {split: sum(shard.num_documents for shard in self._shards[split]) for split in SPLITS}
        return {split: finished[split] + len(self._pending[split]) for split in SPLITS}

    @property
    def num_tokens(self) -> dict[Split, int]:
        """Tokens added so far, by split."""
        finished = {split: sum(shard.num_tokens for shard in self._shards[split]) for split in SPLITS}
        return {split: finished[split] + self._pending_tokens[split] for split in SPLITS}

    def add(self, token_ids: np.ndarray, split: str) -> None:
        """Append one document; see :meth:`bnb_ds.shards.writer.ShardWriter.add`."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        token_ids = np.asarray(token_ids)
        if token_ids.ndim != 1 or token_ids.size == 0 or token_ids.dtype.kind not in "iu":
            raise ValueError(
                f"token_ids must be a non-empty vector of integers, got {token_ids.dtype} of shape {token_ids.shape}"
            )
        if token_ids.min() < 0 or token_ids.max() >= self._is_refused.size or self._is_refused[token_ids].any():
            raise ValueError(
                f"token_ids must be below {self._is_refused.size} and hold no [PAD], [CLS], [SEP] or [MASK]; "
                "encode with bnb_ds.data.tokenization.DocumentEncoder"
            )
        if self._pending[split] and self._pending_tokens[split] + token_ids.size > self._max_tokens:
            self._finish_shard(split)
        self._pending[split].append(token_ids.astype(self._dtype))
        self._pending_tokens[split] += token_ids.size

    def finish(self) -> list[ManifestShard]:
        """Write the last shards, and return all shards, in the order of splits and documents.

        Raises:
            OSError: the disk refuses.
        """
        for split in SPLITS:
            if self._pending[split]:
                self._finish_shard(split)
        return [shard for split in SPLITS for shard in self._shards[split]]

    def _finish_shard(self, split: Split) -> None:
        documents = self._pending[split]
        offsets = np.zeros(len(documents) + 1, dtype=OFFSET_DTYPE)
        np.cumsum([document.size for document in documents], out=offsets[1:])
        shard = ManifestShard(
            split=split,
            name=self._name(split, len(self._shards[split])),
            num_documents=len(documents),
            num_tokens=int(offsets[-1]),
            tokens_sha256="",
            offsets_sha256="",
        )
        tokens_sha256 = write_npy(self._directory / shard.tokens_file, self._dtype, shard.num_tokens, documents)
        offsets_sha256 = write_npy(self._directory / shard.offsets_file, OFFSET_DTYPE, offsets.size, [offsets])
        hashes = {"tokens_sha256": tokens_sha256, "offsets_sha256": offsets_sha256}
        self._shards[split].append(shard.model_copy(update=hashes))
        self._pending[split] = []
        self._pending_tokens[split] = 0


def write_npy(path: Path, dtype: np.dtype, length: int, arrays: Iterable[np.ndarray]) -> str:
    """Write vectors one after the other as one ``.npy`` vector, without joining them in memory.

    Args:
        path: the file.
        dtype: type of the numbers.
        length: sum of the vectors' lengths.
        arrays: the vectors.

    Returns:
        The file's SHA-256, as a hex digest.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": (length,)})
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        parts: Iterator[bytes | memoryview] = chain([header.getvalue()], (array.data for array in arrays))
        for part in parts:
            file.write(part)
            digest.update(part)
        sync_file(file)
    return digest.hexdigest()
