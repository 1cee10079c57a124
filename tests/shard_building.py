"""Documents into a shard directory with the plain writer, for tests that need shards of known documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import BertTokenizerFast

from bnb_ds.data.tokenization import DocumentEncoder, describe_tokenizer
from bnb_ds.shards.writer import DEFAULT_TOKENS_PER_SHARD, ShardWriter
from data_prep.sources.documents import DEFAULT_HOLDOUT, HOLDOUT_RULE, Document, is_held_out


def build_shards(
    documents: Iterable[Document],
    directory: Path,
    tokenizer: BertTokenizerFast,
    *,
    sources: Sequence[Mapping[str, Any]] = (),
    holdout: float = DEFAULT_HOLDOUT,
    tokens_per_shard: int = DEFAULT_TOKENS_PER_SHARD,
) -> None:
    """Encode documents that have tokens, and write them in their order."""
    documents = list(documents)
    with ShardWriter(
        directory,
        tokenizer=describe_tokenizer(tokenizer),
        tokens_per_shard=tokens_per_shard,
        sources=sources,
        holdout={"rule": HOLDOUT_RULE, "fraction": holdout},
        settings={},
    ) as writer:
        encoded = DocumentEncoder(tokenizer)([document.text for document in documents])
        for document, token_ids in zip(documents, encoded, strict=True):
            writer.add(token_ids, "heldout" if is_held_out(document.id, holdout) else "train")
