"""Small shard directories written by hand. Their tokenizer exists only as a `TokenizerInfo`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bnb_ds.shards.manifest import TokenizerInfo
from bnb_ds.shards.writer import ShardWriter

SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def save_name(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{}")


def info(vocab_size: int = 100) -> TokenizerInfo:
    return TokenizerInfo("tiny", "0" * 64, vocab_size, SPECIAL_IDS, save_name)


def writer(directory: Path, *, vocab_size: int = 100, tokens_per_shard: int = 8, **changes) -> ShardWriter:
    arguments = {"sources": [], "holdout": {"rule": "none", "fraction": 0.0}, "settings": {}, **changes}
    return ShardWriter(directory, tokenizer=info(vocab_size), tokens_per_shard=tokens_per_shard, **arguments)


def document(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.uint32)


def write_small(directory: Path) -> Path:
    """Write three shards: two of training documents, and one of held-out documents."""
    with writer(directory) as shard_writer:
        for ids in ([10, 11, 12], [20, 21, 22, 23, 24], [30], [40, 41]):
            shard_writer.add(document(*ids), "train")
        shard_writer.add(document(50, 51), "heldout")
        shard_writer.skip("empty")
    return directory
