"""Writes documents into a shard directory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import BertTokenizerFast

from bnb_ds.data.tokenization import DocumentEncoder, describe_tokenizer
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.shards.manifest import Manifest
from bnb_ds.shards.writer import DEFAULT_TOKENS_PER_SHARD, ShardWriter
from data_prep.sources.documents import DEFAULT_HOLDOUT, HOLDOUT_RULE, Document, batched, is_held_out

# The tokenizer encodes one batch at once. The encodings take about a hundred bytes per token.
_BATCH_CHARACTERS = 1 << 21


def build_shards(
    documents: Iterable[Document],
    directory: str | os.PathLike[str],
    tokenizer: BertTokenizerFast,
    *,
    sources: Sequence[Mapping[str, Any]],
    holdout: float = DEFAULT_HOLDOUT,
    tokens_per_shard: int = DEFAULT_TOKENS_PER_SHARD,
    settings: Mapping[str, Any] | None = None,
) -> Manifest:
    """Tokenise documents into a new shard directory and return its manifest.

    Documents are encoded whole, without special tokens. Documents without a token are counted as skipped ("empty").
    Equal input gives byte-identical output.

    Args:
        documents: the corpus, in the order in which it is stored.
        directory: where the shards go; new or empty.
        tokenizer: makes the ids; a copy is saved with the shards.
        sources: for the manifest, see :class:`bnb_ds.shards.writer.ShardWriter`.
        holdout: share of the documents for evaluation, in [0, 1), chosen by a hash of their ids.
        tokens_per_shard: most tokens of a shard.
        settings: anything else that decides the documents, for the manifest.

    Raises:
        ConfigError: ``holdout`` or ``tokens_per_shard`` is out of range.
        DataError: no document has tokens, no training document is left, or reading or writing fails. Then nothing is
            left.
    """
    if not 0 <= holdout < 1:
        raise ConfigError(f"--holdout must be at least 0 and below 1, got {holdout}")
    if tokens_per_shard < 1:
        raise ConfigError(f"--tokens-per-shard must be at least 1, got {tokens_per_shard}")
    encode = DocumentEncoder(tokenizer)
    writer = ShardWriter(
        directory,
        tokenizer=describe_tokenizer(tokenizer),
        tokens_per_shard=tokens_per_shard,
        sources=sources,
        holdout={"rule": HOLDOUT_RULE, "fraction": float(holdout)},
        settings={"tokens_per_shard": tokens_per_shard, **(settings or {})},
    )
    with writer:
        for batch in batched(documents, _BATCH_CHARACTERS):
            for document, token_ids in zip(batch, encode([document.text for document in batch]), strict=True):
                if token_ids.size == 0:
                    writer.skip("empty")
                else:
                    writer.add(token_ids, "heldout" if is_held_out(document.id, holdout) else "train")
        if sum(writer.num_documents.values()) == 0:
            skipped = sum(writer.skipped.values())
            raise DataError(f"{_names(sources)}: no text ({skipped} empty documents); choose another --input")
        if writer.num_documents["train"] == 0:
            raise DataError(f"{_names(sources)}: every document was held out; give more documents or a lower --holdout")
        return writer.close()


def _names(sources: Sequence[Mapping[str, Any]]) -> str:
    names = [source["name"] for source in sources]
    return ", ".join([*names[:3], "..."] if len(names) > 3 else names) or "corpus"
