"""Make shard directories of synthetic documents, to measure the loader."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from transformers import BertTokenizerFast

from bnb_ds.data.tokenization import describe_tokenizer, tokenizer_from_vocabulary
from bnb_ds.shards.manifest import (
    FORMAT_VERSION,
    OFFSET_DTYPE,
    Manifest,
    ManifestHoldout,
    ManifestShard,
    ManifestTokenizer,
    ManifestTotals,
    token_dtype,
    write_manifest,
)
from bnb_ds.shards.npy_files import numbered, write_npy

#: tokens of bert-base-cased
VOCABULARY = 28_996

# The tokens of a Wikipedia article are log-normal, with this mean and this standard deviation of the logarithm.
_MEAN_LENGTH, _SPREAD = 495, 1.16
_DOCUMENTS_PER_SHARD = 1_000_000


def tokenizer() -> BertTokenizerFast:
    """A tokenizer with a vocabulary of this size; a third of the tokens are continuation pieces."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [f"##w{i}" if i % 3 == 0 else f"w{i}" for i in range(VOCABULARY - len(specials))]
    return tokenizer_from_vocabulary([*specials, *words], lowercase=False, name="synthetic")


def wikipedia_lengths(count: int, seed: int = 0) -> np.ndarray:
    """int64 [count], document lengths distributed as in Wikipedia."""
    rng = np.random.default_rng(seed)
    drawn = rng.lognormal(np.log(_MEAN_LENGTH) - _SPREAD**2 / 2, _SPREAD, count)
    return np.maximum(drawn.astype(np.int64), 1)


def write_shards(directory: Path, lengths: np.ndarray, *, with_tokens: bool) -> Path:
    """Write a shard directory of documents with these lengths.

    Without tokens, the token files are sparse: they have the right size, take no disk space, and read as zeros.
    """
    info = describe_tokenizer(tokenizer())
    directory.mkdir()
    info.save(directory / "tokenizer")
    dtype, shards = token_dtype(VOCABULARY), []
    rng = np.random.default_rng(1)
    for begin in range(0, lengths.size, _DOCUMENTS_PER_SHARD):
        offsets = np.concatenate(([0], np.cumsum(lengths[begin : begin + _DOCUMENTS_PER_SHARD]))).astype(OFFSET_DTYPE)
        shard = ManifestShard(
            split="train",
            name=numbered("train", len(shards)),
            num_documents=offsets.size - 1,
            num_tokens=int(offsets[-1]),
            tokens_sha256="0" * 64,
            offsets_sha256="0" * 64,
        )
        write_npy(directory / shard.offsets_file, OFFSET_DTYPE, offsets.size, [offsets])
        if with_tokens:
            tokens = rng.integers(len(info.special_ids), VOCABULARY, shard.num_tokens, dtype=dtype)
            write_npy(directory / shard.tokens_file, dtype, tokens.size, [tokens])
        else:
            _write_hole(directory / shard.tokens_file, dtype, shard.num_tokens)
        shards.append(shard)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        dtype=dtype.name,
        tokenizer=ManifestTokenizer(name=info.name, hash=info.hash, vocab_size=info.vocab_size),
        special_ids=dict(info.special_ids),
        sources=[],
        shards=shards,
        holdout=ManifestHoldout(rule="none", fraction=0.0),
        settings={},
        totals=ManifestTotals(
            documents={"train": int(lengths.size), "heldout": 0},
            tokens={"train": int(lengths.sum()), "heldout": 0},
            skipped={},
        ),
    )
    write_manifest(directory, manifest)
    return directory


def _write_hole(path: Path, dtype: np.dtype, length: int) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": (length,)})
    path.write_bytes(header.getvalue())
    os.truncate(path, len(header.getvalue()) + length * dtype.itemsize)
