"""A model of the reference implementation, written as an exported model of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bnb_ds.common.files import new_directory
from bnb_ds.data.tokenization import load_tokenizer, save_tokenizer, vocabulary_size
from bnb_ds.errors import DataError
from bnb_ds.modeling import BnbForConditionalGeneration

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


def import_reference(
    source: Path, output: Path, *, tokenizer: Path | None = None, overrides: dict[str, Any] | None = None
) -> list[str]:
    """Convert a directory that the reference's ``save_pretrained`` wrote.

    Args:
        source: that directory.
        output: a directory that does not exist yet, or is empty.
        tokenizer: tokenizer directory or vocabulary file to put beside the model; None: the one in ``source``, if any.
        overrides: fields of `BnbConfig`, see `BnbForConditionalGeneration.from_reference`.

    Returns:
        Lines worth telling the user.

    Raises:
        CheckpointError, ConfigError: as `BnbForConditionalGeneration.from_reference`.
        DataError: ``output`` exists already, or the tokenizer does not fit.
    """
    if tokenizer is None and any((source / name).is_file() for name in _TOKENIZER_FILES):
        tokenizer = source
    model = BnbForConditionalGeneration.from_reference(source, **(overrides or {}))
    loaded = None if tokenizer is None else load_tokenizer(tokenizer)
    if loaded is not None and vocabulary_size(loaded) != model.config.encoder.vocab_size:
        raise DataError(
            f"{tokenizer}: has {vocabulary_size(loaded)} tokens, the model's encoder {model.config.encoder.vocab_size};"
            " give the tokenizer that it was trained with"
        )
    with new_directory(output) as directory:
        model.save_pretrained(directory)
        if loaded is not None:
            save_tokenizer(loaded, directory)
    if loaded is None:
        return [f"{source} holds no tokenizer: without --tokenizer, {output} cannot read text, only token ids"]
    return []
