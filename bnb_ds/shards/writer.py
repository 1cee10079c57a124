"""Writes a shard directory."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bnb_ds.common.files import disk_errors, sync, sync_tree
from bnb_ds.errors import DataError
from bnb_ds.shards.manifest import (
    BAD_RECORDS_NAME,
    FORMAT_VERSION,
    MANIFEST_NAME,
    SEAL_NAME,
    SPECIAL_TOKENS,
    SPLITS,
    TOKENIZER_DIRECTORY,
    Manifest,
    ManifestFile,
    ManifestHoldout,
    ManifestShard,
    ManifestSource,
    ManifestTokenizer,
    ManifestTotals,
    Split,
    TokenizerInfo,
    describe_files,
    token_dtype,
    write_manifest,
)
from bnb_ds.shards.npy_files import ShardFiles

DEFAULT_TOKENS_PER_SHARD = 1 << 26  # 128 MiB of uint16; the writer keeps as much in memory for each split

PARTIAL_DIRECTORY = ".partial"
LOCK_NAME = "lock"
_LEFT_BY_A_WRITER = (PARTIAL_DIRECTORY, TOKENIZER_DIRECTORY, BAD_RECORDS_NAME, SEAL_NAME)  # besides the shards
_SHARD_FILE = re.compile(rf"({'|'.join(SPLITS)})-\d{{5,}}(-\d{{3,}})?\.(tokens|offsets)\.npy")


class ShardWriter:
    """Writes one shard directory. Use it as a context manager; it closes itself at the end of the block.

    All files are written to ``directory/.partial`` and flushed to the disk. :meth:`close` moves them to their final
    names, the manifest last. If the ``with`` block raises, nothing is left. The files that a killed process leaves have
    no manifest, and the next writer removes them. Within each split, documents keep the order in which they were added.

    Args:
        directory: where to write; made if absent. It must be empty or hold only the files of a killed writer.
        tokenizer: see :class:`TokenizerInfo`; a copy is saved in ``directory/tokenizer``.
        tokens_per_shard: most tokens of a shard. Documents are never cut, so a longer document gets a shard of its own.
        sources: input files as mappings with ``name``, ``bytes`` and ``sha256``.
        holdout: mapping with ``rule`` and ``fraction``.
        settings: anything else that decides the output; it must survive JSON.

    Raises:
        DataError: the directory is not empty, another process writes to it, or the disk refuses.
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
        self._tokenizer = tokenizer
        self._sources = [ManifestSource.model_validate(dict(source)) for source in sources]
        self._holdout = ManifestHoldout.model_validate(dict(holdout))
        self._settings = json.loads(json.dumps(dict(settings)))
        self._skipped: Counter[str] = Counter()
        self._closed = False
        self._partial = self.directory / PARTIAL_DIRECTORY
        with disk_errors(self.directory):
            self._made_directory = not self.directory.exists()
            self._lock = _claim(self.directory)
        self._files = ShardFiles(
            self._partial,
            vocab_size=tokenizer.vocab_size,
            special_ids=tokenizer.special_ids,
            max_tokens=tokens_per_shard,
        )

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        if exception_type is not None:
            self.abort()
        elif not self._closed:
            self.close()

    @property
    def num_documents(self) -> dict[Split, int]:
        """Documents added so far, by split."""
        return self._files.num_documents

    @property
    def num_tokens(self) -> dict[Split, int]:
        """Tokens added so far, by split."""
        return self._files.num_tokens

    @property
    def skipped(self) -> dict[str, int]:
        """Documents counted by :meth:`skip` so far, by reason."""
        return dict(sorted(self._skipped.items()))

    def add(self, token_ids: np.ndarray, split: str) -> None:
        """Append one document.

        Args:
            token_ids: integers [num_tokens], at least one, without [PAD], [CLS], [SEP] and [MASK]; copied.
            split: ``"train"`` or ``"heldout"``.

        Raises:
            ValueError: an argument is not as described. For a document without tokens, call :meth:`skip` instead.
            DataError: the disk refuses.
        """
        if self._closed:
            raise ValueError("the shard writer is closed")
        with disk_errors(self.directory):
            self._files.add(token_ids, split)

    def skip(self, reason: str) -> None:
        """Count a document that is left out. The manifest holds the counts by reason."""
        self._skipped[reason] += 1

    def close(self) -> Manifest:
        """Write the last shards, move all files to their final names, the manifest last, and return the manifest.

        Raises:
            DataError: the disk refuses. Then nothing is left.
        """
        if self._closed:
            raise ValueError("the shard writer is closed")
        try:
            with disk_errors(self.directory):
                manifest = self._publish(self._files.finish())
        except BaseException:
            self.abort()
            raise
        self._release()
        return manifest

    def abort(self) -> None:
        """Remove everything that this writer wrote. After :meth:`close` this does nothing."""
        if self._closed:
            return
        _remove_output(self.directory)
        self._release()
        if self._made_directory:
            with suppress(OSError):  # if it is not empty, someone else has put a file there, and it stays
                self.directory.rmdir()

    def _release(self) -> None:
        self._closed = True
        shutil.rmtree(self._partial, ignore_errors=True)
        self._lock.close()

    def _manifest(self, shards: list[ManifestShard], files: list[ManifestFile]) -> Manifest:
        tokenizer = self._tokenizer
        return Manifest(
            format_version=FORMAT_VERSION,
            dtype="uint16" if token_dtype(tokenizer.vocab_size).itemsize == 2 else "uint32",
            tokenizer=ManifestTokenizer(name=tokenizer.name, hash=tokenizer.hash, vocab_size=tokenizer.vocab_size),
            special_ids={
                name: int(tokenizer.special_ids[name]) for name in SPECIAL_TOKENS if name in tokenizer.special_ids
            },
            sources=self._sources,
            shards=shards,
            holdout=self._holdout,
            settings=self._settings,
            totals=ManifestTotals(documents=self.num_documents, tokens=self.num_tokens, skipped=self.skipped),
            engines=[],
            files=files,
        )

    def _publish(self, shards: list[ManifestShard]) -> Manifest:
        (self._partial / TOKENIZER_DIRECTORY).mkdir()
        self._tokenizer.save(self._partial / TOKENIZER_DIRECTORY)
        sync_tree(self._partial / TOKENIZER_DIRECTORY)
        manifest = self._manifest(shards, describe_files(self._partial, [TOKENIZER_DIRECTORY]))
        write_manifest(self._partial, manifest)
        names = [name for shard in shards for name in (shard.tokens_file, shard.offsets_file)]
        for name in [*names, TOKENIZER_DIRECTORY, SEAL_NAME]:
            os.replace(self._partial / name, self.directory / name)
        sync(self.directory)
        os.replace(self._partial / MANIFEST_NAME, self.directory / MANIFEST_NAME)
        sync(self.directory)
        return manifest


def _claim(directory: Path) -> BinaryIO:
    """Lock the directory for one writer, and return the open lock file. The lock also ends with the process."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / PARTIAL_DIRECTORY
    refuse_foreign(directory, had_writer=partial.exists())
    partial.mkdir(exist_ok=True)
    lock = open(partial / LOCK_NAME, "ab")  # noqa: SIM115 -- held as long as the writer lives
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise DataError(f"{directory}: another process is writing here; wait for it or choose another output") from None
    except OSError:
        pass  # the file system has no locks, so the user must not start two writers at once
    try:
        # Since the check above, another writer may have finished here and removed our lock file.
        refuse_foreign(directory, had_writer=True)
        _remove_output(directory, keep=LOCK_NAME)
        os.stat(partial / LOCK_NAME)
    except BaseException:
        lock.close()
        raise
    return lock


def refuse_foreign(directory: Path, *, had_writer: bool) -> None:
    """Raise DataError unless a directory is empty or holds only the files of an interrupted writer."""
    names = set(os.listdir(directory))
    if MANIFEST_NAME in names:
        raise DataError(f"{directory}: already holds finished shards; remove them or choose another output")
    if had_writer:
        names = {name for name in names if name not in _LEFT_BY_A_WRITER and not _SHARD_FILE.fullmatch(name)}
    if names:
        raise DataError(f"{directory}: not empty (it holds {min(names)}); choose a new or empty directory as output")


def _remove_output(directory: Path, keep: str | None = None) -> None:
    """Remove all files of a writer. The manifest goes first, so that the directory never looks finished."""
    (directory / MANIFEST_NAME).unlink(missing_ok=True)
    for name in os.listdir(directory):
        if _SHARD_FILE.fullmatch(name) or name in (BAD_RECORDS_NAME, SEAL_NAME):
            (directory / name).unlink()
    shutil.rmtree(directory / TOKENIZER_DIRECTORY, ignore_errors=True)
    for entry in (directory / PARTIAL_DIRECTORY).glob("*"):
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != keep:
            entry.unlink()
