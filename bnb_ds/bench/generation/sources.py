"""Read real texts for measurements of generation."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from bnb_ds.common.files import READING_ERRORS
from bnb_ds.errors import DataError


def read_sources(
    path: Path, tokenizer: PreTrainedTokenizerBase, num_sources: int, max_tokens: int = 512
) -> list[list[int]]:
    """Tokenise texts spread evenly over a file; add [CLS] and [SEP], and cut them to ``max_tokens``.

    Args:
        path: SQuAD JSON (its passages), JSON lines (field ``source``, ``text`` or ``document``), or one text per
            line; each also as ``.gz``.
        tokenizer: tokenizer of the model.
        num_sources: number of texts.
        max_tokens: most tokens of a text, including [CLS] and [SEP].

    Raises:
        DataError: the file cannot be read, or has no text.
    """
    chosen = read_texts(path, num_sources)
    encoded = tokenizer(chosen, add_special_tokens=False)["input_ids"]
    return [[tokenizer.cls_token_id, *ids[: max_tokens - 2], tokenizer.sep_token_id] for ids in encoded]


def read_texts(path: Path, count: int) -> list[str]:
    """Read texts spread evenly over a file; see `read_sources`."""
    try:
        texts = [text for text in _texts(path) if text.strip()]
    except (*READING_ERRORS, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise DataError(f"--data {path}: cannot be read ({reason}); give SQuAD JSON, JSON lines or text") from None
    if not texts:
        raise DataError(f"--data {path}: holds no text; give SQuAD JSON, JSON lines or text")
    return [texts[i * len(texts) // count] for i in range(count)]


def _texts(path: Path) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    with opener(path, "rt", encoding="utf-8") as file:
        if kind == ".json":
            for article in json.load(file)["data"]:
                yield from (paragraph["context"] for paragraph in article["paragraphs"])
        elif kind == ".jsonl":
            yield from itertools.chain.from_iterable(_of_row(json.loads(line)) for line in file)
        else:
            yield from file


def _of_row(row: dict[str, object]) -> Iterator[str]:
    for field in ("source", "text", "document"):
        if field in row:
            value = row[field]
            yield " ".join(value) if isinstance(value, list) else str(value)
            return
    raise KeyError("a row has none of the fields source, text, document")
