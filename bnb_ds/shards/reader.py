"""Reads token shards, the on-disk form of a tokenised corpus.

A shard directory holds plain ``.npy`` files that ``np.load(mmap_mode="r")`` opens, a ``manifest.json`` that describes
them, and the tokenizer they were made with. ``data_prep/FORMAT.md`` defines the format. The manifest is written last:
a directory without one is unfinished, and a directory with one is complete.

Shards need only NumPy and pydantic, so that readers, checkers and loader workers import little. The writer learns about
the tokenizer from a :class:`bnb_ds.shards.manifest.TokenizerInfo`, which
``bnb_ds.data.tokenization.describe_tokenizer`` makes.
"""

from __future__ import annotations

import bisect
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bnb_ds.common.files import sha256_file
from bnb_ds.errors import DataError
from bnb_ds.shards.manifest import (
    MANIFEST_NAME,
    OFFSET_DTYPE,
    REBUILD,
    SEAL_NAME,
    SPLITS,
    TOKENIZER_DIRECTORY,
    Manifest,
    ManifestShard,
    parse_manifest,
    seal,
)
from bnb_ds.shards.pread import ShardReader

# Number of documents whose lengths are read together.
_LENGTH_BLOCK = 1 << 18


class TokenShards:
    """One split of a shard directory, memory-mapped: reading a document touches only its own pages.

    Opening checks the manifest's seal, that every file is there with the type and size that the manifest states, and
    that the offsets fit; it does not read the tokens unless ``verify_hashes`` is set.

    Args:
        directory: a finished shard directory.
        split: ``"train"`` or ``"heldout"``; a split without documents has length 0.
        verify_hashes: also read everything and compare the SHA-256 of every file, but for the other split's shards.
            A directory of format version 1 has hashes of its shards alone.

    Attributes:
        directory: as given.
        split: as given.
        manifest: the typed :class:`Manifest`.
        fingerprint: SHA-256 (hex) of ``manifest.json``, which holds the hash of every shard of every split.

    Raises:
        DataError: a file is missing, truncated, damaged or of another format version.
    """

    def __init__(self, directory: str | os.PathLike[str], split: str = "train", *, verify_hashes: bool = False) -> None:
        if split not in SPLITS:
            raise DataError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        self.directory = Path(directory)
        self.split = split
        data = read_manifest_bytes(self.directory)
        self.manifest = parse_manifest(data, self.directory / MANIFEST_NAME)
        _refuse_broken_seal(self.directory, self.manifest, data)
        self.fingerprint = hashlib.sha256(data).hexdigest()
        self._tokens: list[np.ndarray] = []
        self._offsets: list[np.ndarray] = []
        dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        first_document, token_files, data_offsets = [0], [], []
        for shard in self.manifest.shards:
            if shard.split != split:
                continue
            tokens, offsets = _open_shard(self.directory, shard, dtype)
            if verify_hashes:
                _verify_hash(self.directory / shard.tokens_file, shard.tokens_sha256)
                _verify_hash(self.directory / shard.offsets_file, shard.offsets_sha256)
            self._tokens.append(tokens)
            self._offsets.append(offsets)
            first_document.append(first_document[-1] + shard.num_documents)
            token_files.append(self.directory / shard.tokens_file)
            data_offsets.append(token_files[-1].stat().st_size - tokens.nbytes)
        if verify_hashes and self.manifest.format_version > 1:
            for file in self.manifest.files:
                _verify_hash(self.directory / file.name, file.sha256)
            for line in unlisted_files(self.directory, self.manifest):
                raise DataError(line)
        self._first_document = first_document
        self._reader = ShardReader(token_files, data_offsets, dtype)

    def __len__(self) -> int:
        return self._first_document[-1]

    def __reduce__(self) -> tuple[type[TokenShards], tuple[Path, str]]:
        # A spawned loader worker opens the files itself. Pickling the memory maps would copy the corpus to it.
        return TokenShards, (self.directory, self.split)

    def document(self, index: int) -> np.ndarray:
        """Token ids of one document: a read-only view [num_tokens] of the mapped file, uint16 or uint32.

        Raises:
            IndexError: ``index`` is not in ``[0, len(self))``.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        shard = bisect.bisect_right(self._first_document, index) - 1
        offsets = self._offsets[shard]
        row = index - self._first_document[shard]
        return self._tokens[shard][offsets[row] : offsets[row + 1]]

    def read(
        self, documents: np.ndarray, begins: np.ndarray, sizes: np.ndarray, out: np.ndarray, places: np.ndarray
    ) -> None:
        """Copy spans of documents into a row of tokens. This does not use the memory maps (see `ShardReader`).

        Args:
            documents: int64 [P], the document of each span.
            begins: int64 [P], index of each span's first token in its document.
            sizes: int64 [P], tokens of each span.
            out: contiguous [N], of dtype `token_dtype`.
            places: int64 [P], where each span begins in ``out``.

        Raises:
            DataError: the file is missing, has become shorter, or is on a disk that fails; the message names it.
        """
        shards, rows = self._located(documents)
        first = np.empty(documents.size, dtype=np.int64)
        for shard in _distinct(shards):
            mine = shards == shard
            first[mine] = self._offsets[shard][rows[mine]]
        self._reader.read(shards, first + begins, out, np.stack((places, places + sizes), axis=1))

    @property
    def token_dtype(self) -> np.dtype:
        """Dtype of the tokens on disk: little-endian uint16 or uint32."""
        return self._reader.dtype

    @property
    def lengths(self) -> np.ndarray:
        """int64 [num_documents], tokens in each document. Each call makes a new array, of 8 bytes per document."""
        return np.concatenate([np.zeros(0, dtype=np.int64), *self.length_blocks()])

    def length_blocks(self) -> Iterator[np.ndarray]:
        """`lengths` in pieces of bounded size."""
        for offsets in self._offsets:
            for begin in range(0, offsets.size - 1, _LENGTH_BLOCK):
                yield np.diff(offsets[begin : begin + _LENGTH_BLOCK + 1]).astype(np.int64)

    def lengths_of(self, documents: np.ndarray) -> np.ndarray:
        """int64 [P], tokens of these documents."""
        lengths = np.empty(documents.size, dtype=np.int64)
        shards, rows = self._located(documents)
        for shard in _distinct(shards):
            mine = shards == shard
            offsets, row = self._offsets[shard], rows[mine]
            lengths[mine] = offsets[row + 1] - offsets[row]
        return lengths

    def _located(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shard of each document and its index in the shard, int64 [P] each."""
        first = np.asarray(self._first_document)
        shards = np.searchsorted(first, documents, side="right") - 1
        return shards, documents - first[shards]

    @property
    def num_tokens(self) -> int:
        """Tokens in this split."""
        return sum(tokens.size for tokens in self._tokens)

    @property
    def vocab_size(self) -> int:
        """Number of ids of the tokenizer."""
        return self.manifest.tokenizer.vocab_size

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids of ``pad``, ``unk``, ``cls``, ``sep`` and ``mask``; only ``unk`` occurs in documents."""
        return {str(name): number for name, number in self.manifest.special_ids.items()}

    @property
    def tokenizer_hash(self) -> str:
        """Content hash of the tokenizer; tokenizers with equal hashes give equal ids."""
        return self.manifest.tokenizer.hash

    @property
    def tokenizer_dir(self) -> Path:
        """Directory that holds the copy of the tokenizer."""
        return self.directory / TOKENIZER_DIRECTORY


def _distinct(shards: np.ndarray) -> list[int]:
    return [int(shards[0])] if shards.size and (shards == shards[0]).all() else np.unique(shards).tolist()


def read_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """Read and check the manifest of a finished shard directory.

    Raises:
        DataError: the manifest is missing, damaged or of another format version.
    """
    directory = Path(directory)
    data = read_manifest_bytes(directory)
    manifest = parse_manifest(data, directory / MANIFEST_NAME)
    _refuse_broken_seal(directory, manifest, data)
    return manifest


def seal_damage(directory: Path, data: bytes) -> str | None:
    """What is wrong with the seal of a manifest whose content is ``data``; None if nothing is."""
    path = directory / SEAL_NAME
    try:
        found = path.read_bytes()
    except OSError as error:
        return f"{path}: cannot read: {error.strerror}; restore it or {REBUILD}"
    if found != seal(data):
        return f"{path}: is not the SHA-256 of {MANIFEST_NAME}: one of the two is damaged; restore both or {REBUILD}"
    return None


def unlisted_files(directory: Path, manifest: Manifest) -> list[str]:
    """Files in the tokenizer's directory that the manifest does not list; they could change how it encodes."""
    listed = {file.name for file in manifest.files}
    inside = (path for path in (directory / TOKENIZER_DIRECTORY).rglob("*") if not path.is_dir())
    found = sorted(path.relative_to(directory).as_posix() for path in inside)
    return [f"{directory / name}: not in the manifest; remove it" for name in found if name not in listed]


def _refuse_broken_seal(directory: Path, manifest: Manifest, data: bytes) -> None:
    if manifest.format_version > 1 and (damage := seal_damage(directory, data)) is not None:
        raise DataError(damage)


def read_manifest_bytes(directory: Path) -> bytes:
    """The content of ``manifest.json``, not checked.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    try:
        return (directory / MANIFEST_NAME).read_bytes()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DataError(f"{directory / MANIFEST_NAME}: cannot read: {error.strerror}") from error
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory; give a shard directory made by `bnb-ds prep`")
    raise DataError(
        f"{directory}: no {MANIFEST_NAME}, so not a finished shard directory; let `bnb-ds prep` finish, or {REBUILD}"
    )


def _open_shard(directory: Path, shard: ManifestShard, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Map the two files of a shard, check them against the shard's manifest entry, and return tokens and offsets."""
    tokens = _open_npy(directory / shard.tokens_file, dtype, shard.num_tokens)
    offsets_path = directory / shard.offsets_file
    offsets = _open_npy(offsets_path, OFFSET_DTYPE, shard.num_documents + 1)
    if offsets[0] != 0 or offsets[-1] != shard.num_tokens or not (offsets[1:] > offsets[:-1]).all():
        raise DataError(f"{offsets_path}: offsets do not rise from 0 to {shard.num_tokens} tokens; {REBUILD}")
    return tokens, offsets


def _open_npy(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("not version 1.0 of the .npy format")
            shape, _, found_dtype = np.lib.format.read_array_header_1_0(file)
            expected_bytes = file.tell() + length * dtype.itemsize
        num_bytes = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{path}: missing; restore it or {REBUILD}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from error
    except Exception as error:  # NumPy evaluates the header, and a damaged one fails in any way
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable .npy file ({reason}); restore it or {REBUILD}") from None
    if found_dtype != dtype or shape != (length,):
        raise DataError(
            f"{path}: holds {found_dtype} of shape {shape}, but the manifest says {dtype} of shape ({length},);"
            f" {REBUILD}"
        )
    if num_bytes != expected_bytes:
        state = "truncated" if num_bytes < expected_bytes else "too long"
        raise DataError(f"{path}: {state} ({num_bytes} bytes instead of {expected_bytes}); restore it or {REBUILD}")
    # A plain ndarray, because slicing an np.memmap costs twice as much.
    return np.asarray(np.load(path, mmap_mode="r"))


def _verify_hash(path: Path, expected: str) -> None:
    try:
        found = sha256_file(path)
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}; restore it or {REBUILD}") from error
    if found != expected:
        raise DataError(f"{path}: content does not match the manifest's SHA-256; restore it or {REBUILD}")
