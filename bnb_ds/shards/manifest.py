"""The manifest of a shard directory: its fields, its file names, reading and writing it.

``data_prep/FORMAT.md`` defines the format. The classes below give the same fields as types.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bnb_ds.common.files import sha256_file, write_synced
from bnb_ds.errors import DataError

Split = Literal["train", "heldout"]
SpecialToken = Literal["pad", "unk", "cls", "sep", "mask"]

FORMAT_VERSION: Literal[2] = 2
#: version 1 has no seal, and hashes of the shards alone
READABLE_VERSIONS = (1, FORMAT_VERSION)
SPLITS: tuple[Split, ...] = ("train", "heldout")
MANIFEST_NAME = "manifest.json"
SEAL_NAME = "manifest.json.sha256"
BAD_RECORDS_NAME = "bad_records.jsonl"
TOKENIZER_DIRECTORY = "tokenizer"
SPECIAL_TOKENS: tuple[SpecialToken, ...] = ("pad", "unk", "cls", "sep", "mask")
#: a byte-level tokenizer may know every text, and a tokenizer may have no mask
REQUIRED_TOKENS: tuple[SpecialToken, ...] = ("pad", "cls", "sep")
OFFSET_DTYPE = np.dtype("<u8")
REBUILD = "make the shards again with `bnb-ds prep`"


@dataclass(frozen=True)
class TokenizerInfo:
    """What a shard directory records about its tokenizer, and how to save a copy of the tokenizer."""

    name: str  # the tokenizer's own name, never a path
    hash: str  # bnb_ds.data.tokenization.tokenizer_hash
    vocab_size: int  # every id is below this number
    special_ids: Mapping[str, int]  # pad, cls, sep, and unk and mask if it has them
    save: Callable[[Path], None]  # writes the tokenizer into a directory


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ManifestTokenizer(_Record):
    """The tokenizer that made the ids."""

    name: str
    hash: str
    vocab_size: int = Field(gt=0)


class ManifestSource(_Record):
    """One input file."""

    name: str
    bytes: int = Field(ge=0)
    sha256: str


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("must be a path inside the shard directory")
    return name


class ManifestFile(_Record):
    """A file of the directory that belongs to no shard."""

    name: str
    bytes: int = Field(ge=0)
    sha256: str

    _stays_inside = field_validator("name")(_inside)


class ManifestEngine(_Record):
    """A program that made token ids, with the releases of the packages that it consists of."""

    name: str
    packages: dict[str, str]


class ManifestShard(_Record):
    """One pair of ``NAME.tokens.npy`` and ``NAME.offsets.npy``. The hashes are those of the whole files."""

    split: Split
    name: str
    num_documents: int = Field(gt=0)
    num_tokens: int = Field(gt=0)
    tokens_sha256: str
    offsets_sha256: str

    _stays_inside = field_validator("name")(_inside)

    @property
    def tokens_file(self) -> str:
        """File of the token ids, relative to the shard directory."""
        return f"{self.name}.tokens.npy"

    @property
    def offsets_file(self) -> str:
        """File of the document offsets, relative to the shard directory."""
        return f"{self.name}.offsets.npy"


class ManifestHoldout(_Record):
    """How the held-out documents were chosen."""

    rule: str
    fraction: float = Field(ge=0, le=1)


class ManifestTotals(_Record):
    """Sums over all shards, and how many documents were left out, by reason."""

    documents: dict[Split, int]
    tokens: dict[Split, int]
    skipped: dict[str, int]


class Manifest(_Record):
    """The content of ``manifest.json``. It holds no time, host or absolute path, so equal input gives equal bytes."""

    format_version: Literal[1, 2]
    dtype: Literal["uint16", "uint32"]
    tokenizer: ManifestTokenizer
    special_ids: dict[SpecialToken, int]
    sources: list[ManifestSource]
    shards: list[ManifestShard]
    holdout: ManifestHoldout
    settings: dict[str, Any]
    totals: ManifestTotals
    engines: list[ManifestEngine] = []
    files: list[ManifestFile] = []

    def to_bytes(self) -> bytes:
        """The file's content: JSON in field order, indented, ASCII."""
        return (json.dumps(self.model_dump(), indent=2) + "\n").encode("ascii")


def describe_files(directory: Path, names: Iterable[str]) -> list[ManifestFile]:
    """The entries of files of a shard directory, in sorted order.

    Args:
        directory: where they lie.
        names: files, and directories of which every file is meant.

    Raises:
        OSError: one cannot be read.
    """
    found: set[Path] = set()
    for name in names:
        path = directory / name
        found.update(inner for inner in path.rglob("*") if inner.is_file()) if path.is_dir() else found.add(path)
    entries = ((path.relative_to(directory).as_posix(), path) for path in found)
    return [
        ManifestFile(name=name, bytes=path.stat().st_size, sha256=sha256_file(path)) for name, path in sorted(entries)
    ]


def seal(manifest: bytes) -> bytes:
    """The content of the seal file: what ``sha256sum manifest.json`` prints."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST_NAME}\n".encode("ascii")


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write a manifest and its seal, and make their content durable.

    Raises:
        OSError: the disk refuses.
    """
    data = manifest.to_bytes()
    write_synced(directory / SEAL_NAME, seal(data))
    write_synced(directory / MANIFEST_NAME, data)


def refused_ids(special_ids: Mapping[str, int]) -> list[int]:
    """The ids that no document may hold: those of all special tokens but ``unk``."""
    return [index for name, index in special_ids.items() if name != "unk"]


def token_dtype(vocab_size: int) -> np.dtype:
    """Little-endian uint16 if every id below ``vocab_size`` fits into it, else uint32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """Check the content of a manifest and return it as a `Manifest`. Errors name ``path``.

    Raises:
        DataError: not JSON, another format version, or a field is wrong.
    """
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); {REBUILD}") from None
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version not in READABLE_VERSIONS:
        raise DataError(
            f"{path}: format_version is {version!r}, this version of bnb_ds reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}; use the version of bnb_ds that wrote the shards or {REBUILD}"
        )
    for name in ("engines", "files"):
        if (name in fields) != (version == FORMAT_VERSION):
            reason = "Field required" if version == FORMAT_VERSION else "there is none in format version 1"
            raise DataError(f"{path}: field {name}: {reason}; {REBUILD}")
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: field {field}: {first['msg']}; {REBUILD}") from None
    missing = [name for name in REQUIRED_TOKENS if name not in manifest.special_ids]
    if missing:
        raise DataError(f"{path}: field special_ids: {', '.join(missing)} missing; {REBUILD}")
    for name, index in manifest.special_ids.items():
        if not 0 <= index < manifest.tokenizer.vocab_size:
            raise DataError(f"{path}: field special_ids.{name}: {index} is no id of the tokenizer; {REBUILD}")
    for name in ("documents", "tokens"):
        if set(getattr(manifest.totals, name)) != set(SPLITS):
            raise DataError(f"{path}: field totals.{name}: must have {' and '.join(SPLITS)}; {REBUILD}")
    return manifest
