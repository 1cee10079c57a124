"""Checking a shard directory to the last byte."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bnb_ds.common.files import sha256_file
from bnb_ds.data.tokenization import load_tokenizer, tokenizer_hash
from bnb_ds.errors import DataError
from bnb_ds.shards.manifest import (
    MANIFEST_NAME,
    OFFSET_DTYPE,
    SPLITS,
    TOKENIZER_DIRECTORY,
    Manifest,
    ManifestShard,
    parse_manifest,
    refused_ids,
)
from bnb_ds.shards.reader import read_manifest_bytes, seal_damage, unlisted_files

_BLOCK_TOKENS = 1 << 22


def find_damage(directory: str | os.PathLike[str]) -> list[str]:
    """Everything that is wrong with a shard directory, one line each, naming shard and document where they are known.

    Raises:
        DataError: there is no manifest, so nothing to check against.
    """
    directory = Path(directory)
    data = read_manifest_bytes(directory)
    try:
        manifest = parse_manifest(data, directory / MANIFEST_NAME)
    except DataError as error:
        broken = seal_damage(directory, data)
        return [str(error)] if broken is None else [str(error), broken]
    damage = [] if manifest.format_version == 1 else [seal_damage(directory, data)]
    damage += [line for shard in manifest.shards for line in _shard_damage(directory, manifest, shard)]
    damage += _file_damage(directory, manifest)
    damage += _totals_damage(directory, manifest)
    return [line for line in damage if line is not None]


def unchecked(manifest: Manifest) -> str | None:
    """What cannot be checked of a directory of an old format version, in one line; None if everything can."""
    if manifest.format_version > 1:
        return None
    return (
        "format version 1 has no hash of the manifest itself, of bad_records.jsonl and of tokenizer settings that do "
        "not decide the ids: these are not checked"
    )


def _shard_damage(directory: Path, manifest: Manifest, shard: ManifestShard) -> Iterator[str]:
    token_dtype = np.dtype(manifest.dtype).newbyteorder("<")
    files = (
        (directory / shard.tokens_file, token_dtype, shard.num_tokens, shard.tokens_sha256),
        (directory / shard.offsets_file, OFFSET_DTYPE, shard.num_documents + 1, shard.offsets_sha256),
    )
    arrays = []
    for path, dtype, length, sha256 in files:
        yield from _hash_damage(path, sha256)
        try:
            array = np.load(path, mmap_mode="r")
        except OSError:
            continue  # the hash could not be read either, which is reported
        except Exception as error:  # NumPy evaluates the header, and a damaged one fails in any way
            yield f"{path}: cannot read: {' '.join(str(error).split())}"
            continue
        if array.dtype != dtype or array.shape != (length,):
            yield f"{path}: holds {array.dtype} of shape {array.shape}, the manifest says {dtype} of shape ({length},)"
            continue
        arrays.append(np.asarray(array))
    if len(arrays) < len(files):
        return
    tokens, offsets = arrays
    bad = np.flatnonzero(offsets[1:] <= offsets[:-1])
    if offsets[0] != 0 or offsets[-1] != shard.num_tokens or bad.size:
        where = f"document {bad[0]} of the shard has no tokens" if bad.size else "its first or last one is wrong"
        yield f"{directory / shard.offsets_file}: offsets do not rise from 0 to {shard.num_tokens}: {where}"
        return
    yield from _id_damage(directory / shard.tokens_file, manifest, tokens, offsets)


def _hash_damage(path: Path, sha256: str) -> Iterator[str]:
    try:
        if sha256_file(path) != sha256:
            yield f"{path}: content does not match the manifest's SHA-256"
    except OSError as error:
        yield f"{path}: cannot read: {error.strerror or error}"


def _id_damage(path: Path, manifest: Manifest, tokens: np.ndarray, offsets: np.ndarray) -> Iterator[str]:
    """The first id of a shard that no document may hold."""
    refused = np.zeros(np.iinfo(tokens.dtype).max + 1 if tokens.itemsize == 2 else manifest.tokenizer.vocab_size, bool)
    refused[manifest.tokenizer.vocab_size :] = True
    refused[refused_ids(manifest.special_ids)] = True
    for start in range(0, len(tokens), _BLOCK_TOKENS):
        block = tokens[start : start + _BLOCK_TOKENS]
        too_large = block >= len(refused)
        bad = np.flatnonzero(too_large | refused[np.where(too_large, 0, block)])
        if bad.size:
            place = start + int(bad[0])
            document = int(np.searchsorted(offsets, place, side="right")) - 1
            yield (
                f"{path}: document {document} of the shard holds id {tokens[place]} at token "
                f"{place - int(offsets[document])}, which is special or not below {manifest.tokenizer.vocab_size}"
            )
            return


def _file_damage(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Files that belong to no shard: the tokenizer and the list of bad records."""
    is_tokenizer_whole = True
    for file in manifest.files:
        for line in _hash_damage(directory / file.name, file.sha256):
            is_tokenizer_whole &= not file.name.startswith(f"{TOKENIZER_DIRECTORY}/")
            yield line
    if manifest.format_version > 1:
        for line in unlisted_files(directory, manifest):
            is_tokenizer_whole = False
            yield line
    if is_tokenizer_whole:  # else it is not worth loading
        yield from _tokenizer_damage(directory, manifest)


def _tokenizer_damage(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Whether the tokenizer as it lies there is the one that the manifest names."""
    path = directory / TOKENIZER_DIRECTORY
    try:
        content = tuple((file.name, sha256_file(file)) for file in sorted(path.rglob("*")) if file.is_file())
        found = _loaded_hash(path, content)
    except OSError as error:
        yield f"{path}: cannot read: {error.strerror or error}"
    except DataError as error:
        yield str(error)
    else:
        if found != manifest.tokenizer.hash:
            yield f"{path}: not the tokenizer that made the shards (its hash is {found})"


@functools.lru_cache(maxsize=1)
def _loaded_hash(path: Path, content: tuple[tuple[str, str], ...]) -> str:
    """The hash of a tokenizer; one of equal content is loaded once."""
    return tokenizer_hash(load_tokenizer(path))


def _totals_damage(directory: Path, manifest: Manifest) -> Iterator[str]:
    for split in SPLITS:
        shards = [shard for shard in manifest.shards if shard.split == split]
        sums = (sum(shard.num_documents for shard in shards), sum(shard.num_tokens for shard in shards))
        stated = (manifest.totals.documents[split], manifest.totals.tokens[split])
        if sums != stated:
            yield (
                f"{directory / MANIFEST_NAME}: {split} totals are {stated[0]} documents and {stated[1]} tokens, "
                f"its shards sum to {sums[0]} and {sums[1]}"
            )
