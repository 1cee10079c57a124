"""Writing a shard directory; ``bnb_ds.shards`` is the module to import it from."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bnb_ds.errors import DataError
from bnb_ds.files import sync
from bnb_ds.outputs import disk_errors, sync_file, sync_tree, write_synced
from bnb_ds.shard_manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    OFFSET_DTYPE,
    SPECIAL_TOKENS,
    SPLITS,
    TOKENIZER_DIRECTORY,
    Manifest,
    ManifestHoldout,
    ManifestShard,
    ManifestSource,
    ManifestTokenizer,
    ManifestTotals,
    TokenizerInfo,
    token_dtype,
)

DEFAULT_TOKENS_PER_SHARD = 1 << 26  # 128 MiB of uint16, which is also what the writer keeps in memory per split

_PARTIAL_DIRECTORY = ".partial"
_LOCK_NAME = "lock"
_SHARD_FILE = re.compile(rf"({'|'.join(SPLITS)})-\d{{5,}}\.(tokens|offsets)\.npy")


class ShardWriter:
    """Writes one shard directory; use it as a context manager, which closes it if the block has not.

    Everything is written, flushed and synced under ``directory/.partial`` and moved to its final name by
    :meth:`close`, the manifest last. When the ``with`` block raises, nothing is left; what a killed process leaves has
    no manifest and is cleared by the next writer. Documents keep the order in which they were added, split by split.

    Args:
        directory: where to write; made if absent. It may hold nothing but what a killed writer left.
        tokenizer: see :class:`TokenizerInfo`; a copy is saved in ``directory/tokenizer``.
        tokens_per_shard: a shard is closed before the document that would take it past this many tokens. A longer
            document makes a shard of its own: documents are never cut.
        sources: input files as mappings with ``name``, ``bytes`` and ``sha256``.
        holdout: mapping with ``rule`` and ``fraction``.
        settings: anything else that decided the output; must survive JSON.

    Raises:
        DataError: the directory is not empty, another process writes it, or the disk refuses.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        tokenizer: TokenizerInfo,
        tokens_per_shard: int = DEFAULT_TOKENS_PER_SHARD,
        sources: Sequence[Mapping[str, Any]],
        holdout: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> None:
        if tokens_per_shard < 1:
            raise ValueError(f"tokens_per_shard must be at least 1, got {tokens_per_shard}")
        self.directory = Path(directory)
        self.dtype = token_dtype(tokenizer.vocab_size)
        self._tokenizer = tokenizer
        self._tokens_per_shard = tokens_per_shard
        self._sources = [ManifestSource.model_validate(dict(source)) for source in sources]
        self._holdout = ManifestHoldout.model_validate(dict(holdout))
        self._settings = json.loads(json.dumps(dict(settings)))
        # A table of ids: one gather per document finds special tokens.
        self._is_refused = np.zeros(tokenizer.vocab_size, dtype=bool)
        self._is_refused[[tokenizer.special_ids[name] for name in SPECIAL_TOKENS if name != "unk"]] = True
        self._pending: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        self._pending_tokens = dict.fromkeys(SPLITS, 0)
        self._shards: dict[str, list[ManifestShard]] = {split: [] for split in SPLITS}
        self._skipped: Counter[str] = Counter()
        self._closed = False
        self._partial = self.directory / _PARTIAL_DIRECTORY
        with disk_errors(self.directory):
            self._made_directory = not self.directory.exists()
            self._lock = _claim(self.directory)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        if exception_type is not None:
            self.abort()
        elif not self._closed:
            self.close()

    @property
    def num_documents(self) -> dict[str, int]:
        """Documents added so far, by split."""
        finished = {split: sum(shard.num_documents for shard in self._shards[split]) for split in SPLITS}
        return {split: finished[split] + len(self._pending[split]) for split in SPLITS}

    @property
    def num_tokens(self) -> dict[str, int]:
        """Tokens added so far, by split."""
        finished = {split: sum(shard.num_tokens for shard in self._shards[split]) for split in SPLITS}
        return {split: finished[split] + self._pending_tokens[split] for split in SPLITS}

    @property
    def skipped(self) -> dict[str, int]:
        """Documents reported to :meth:`skip` so far, by reason."""
        return dict(sorted(self._skipped.items()))

    def add(self, token_ids: np.ndarray, split: str) -> None:
        """Append one document.

        Args:
            token_ids: integers [num_tokens], at least one, without [PAD], [CLS], [SEP] and [MASK]; copied.
            split: ``"train"`` or ``"heldout"``.

        Raises:
            ValueError: any of that does not hold; :meth:`skip` is for documents without tokens.
            DataError: the disk refuses.
        """
        if self._closed:
            raise ValueError("the shard writer is closed")
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
                "encode with bnb_ds.tokenization.DocumentEncoder"
            )
        if self._pending[split] and self._pending_tokens[split] + token_ids.size > self._tokens_per_shard:
            self._finish_shard(split)
        self._pending[split].append(token_ids.astype(self.dtype))
        self._pending_tokens[split] += token_ids.size

    def skip(self, reason: str) -> None:
        """Count a document that is left out; the manifest reports the counts by reason."""
        self._skipped[reason] += 1

    def close(self) -> Manifest:
        """Write what is pending, move everything to its final name, the manifest last, and return the manifest.

        Raises:
            DataError: the disk refuses; nothing is left then.
        """
        if self._closed:
            raise ValueError("the shard writer is closed")
        try:
            for split in SPLITS:
                if self._pending[split]:
                    self._finish_shard(split)
            manifest = self._manifest()
            with disk_errors(self.directory):
                self._publish(manifest)
        except BaseException:
            self.abort()
            raise
        self._release()
        return manifest

    def abort(self) -> None:
        """Remove everything this writer wrote; does nothing after :meth:`close`."""
        if self._closed:
            return
        _remove_output(self.directory)
        self._release()
        if self._made_directory:
            with suppress(OSError):  # not empty: someone else put a file there meanwhile, theirs to keep
                self.directory.rmdir()

    def _release(self) -> None:
        self._closed = True
        shutil.rmtree(self._partial, ignore_errors=True)
        self._lock.close()

    def _finish_shard(self, split: str) -> None:
        documents = self._pending[split]
        offsets = np.zeros(len(documents) + 1, dtype=OFFSET_DTYPE)
        np.cumsum([document.size for document in documents], out=offsets[1:])
        shard = ManifestShard(
            split=split,
            name=f"{split}-{len(self._shards[split]):05d}",
            num_documents=len(documents),
            num_tokens=int(offsets[-1]),
            tokens_sha256="",
            offsets_sha256="",
        )
        with disk_errors(self.directory):
            tokens_sha256 = _write_npy(self._partial / shard.tokens_file, self.dtype, shard.num_tokens, documents)
            offsets_sha256 = _write_npy(self._partial / shard.offsets_file, OFFSET_DTYPE, offsets.size, [offsets])
        hashes = {"tokens_sha256": tokens_sha256, "offsets_sha256": offsets_sha256}
        self._shards[split].append(shard.model_copy(update=hashes))
        self._pending[split] = []
        self._pending_tokens[split] = 0

    def _manifest(self) -> Manifest:
        tokenizer = self._tokenizer
        return Manifest(
            format_version=FORMAT_VERSION,
            dtype=self.dtype.name,
            tokenizer=ManifestTokenizer(name=tokenizer.name, hash=tokenizer.hash, vocab_size=tokenizer.vocab_size),
            special_ids={name: int(tokenizer.special_ids[name]) for name in SPECIAL_TOKENS},
            sources=self._sources,
            shards=[shard for split in SPLITS for shard in self._shards[split]],
            holdout=self._holdout,
            settings=self._settings,
            totals=ManifestTotals(documents=self.num_documents, tokens=self.num_tokens, skipped=self.skipped),
        )

    def _publish(self, manifest: Manifest) -> None:
        (self._partial / TOKENIZER_DIRECTORY).mkdir()
        self._tokenizer.save(self._partial / TOKENIZER_DIRECTORY)
        sync_tree(self._partial / TOKENIZER_DIRECTORY)
        write_synced(self._partial / MANIFEST_NAME, manifest.to_bytes())
        names = [name for shard in manifest.shards for name in (shard.tokens_file, shard.offsets_file)]
        for name in [*names, TOKENIZER_DIRECTORY]:
            os.replace(self._partial / name, self.directory / name)
        sync(self.directory)
        os.replace(self._partial / MANIFEST_NAME, self.directory / MANIFEST_NAME)
        sync(self.directory)


def _claim(directory: Path) -> BinaryIO:
    """Take the directory for one writer; returns the open lock file, which the process's death releases too."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / _PARTIAL_DIRECTORY
    _refuse_foreign(directory, had_writer=partial.exists())
    partial.mkdir(exist_ok=True)
    lock = open(partial / _LOCK_NAME, "ab")  # noqa: SIM115 -- held as long as the writer lives
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise DataError(f"{directory}: another process is writing here; wait for it or choose another output") from None
    except OSError:
        pass  # a file system without locks: two writers at once are then the user's to avoid
    try:
        # Between the calls above another writer may have finished here and removed what we hold.
        _refuse_foreign(directory, had_writer=True)
        _remove_output(directory, keep=_LOCK_NAME)
        os.stat(partial / _LOCK_NAME)
    except BaseException:
        lock.close()
        raise
    return lock


def _refuse_foreign(directory: Path, *, had_writer: bool) -> None:
    names = set(os.listdir(directory))
    if MANIFEST_NAME in names:
        raise DataError(f"{directory}: already holds finished shards; remove them or choose another output")
    if had_writer:
        names = {name for name in names if name not in (_PARTIAL_DIRECTORY, TOKENIZER_DIRECTORY)}
        names = {name for name in names if not _SHARD_FILE.fullmatch(name)}
    if names:
        raise DataError(f"{directory}: not empty (it holds {min(names)}); choose a new or empty directory as output")


def _remove_output(directory: Path, keep: str | None = None) -> None:
    """Remove what a writer may have left: the manifest first, so that no moment shows a finished directory."""
    (directory / MANIFEST_NAME).unlink(missing_ok=True)
    for name in os.listdir(directory):
        if _SHARD_FILE.fullmatch(name):
            (directory / name).unlink()
    shutil.rmtree(directory / TOKENIZER_DIRECTORY, ignore_errors=True)
    for entry in (directory / _PARTIAL_DIRECTORY).glob("*"):
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != keep:
            entry.unlink()


def _write_npy(path: Path, dtype: np.dtype, length: int, arrays: Iterable[np.ndarray]) -> str:
    """Write vectors back to back as one ``.npy`` vector without joining them in memory; returns the file's SHA-256."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": (length,)})
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for data in (header.getvalue(), *(array.data for array in arrays)):
            file.write(data)
            digest.update(data)
        sync_file(file)
    return digest.hexdigest()
