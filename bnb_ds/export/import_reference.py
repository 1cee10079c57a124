"""``bnb-ds import-reference``: convert a model of the reference implementation to an exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bnb_ds.common.files import new_directory, refuse_directory
from bnb_ds.data.tokenization import load_tokenizer, save_tokenizer, vocabulary_size
from bnb_ds.errors import DataError
from bnb_ds.model.from_reference import reference_pooler, was_vae
from bnb_ds.modeling import BnbForConditionalGeneration

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


def import_reference(
    source: Path, output: Path, *, tokenizer: Path | None = None, overrides: dict[str, Any] | None = None
) -> list[str]:
    """Convert a directory that the reference's ``save_pretrained`` wrote. BERT's pooler is kept for classifiers.

    Args:
        source: the directory to convert.
        output: a directory that does not exist yet, or is empty.
        tokenizer: tokenizer directory or vocabulary file to save with the model; None: the one in ``source``, if any.
        overrides: fields of `bnb_ds.model.configuration.BnbConfig`, see `BnbForConditionalGeneration.from_reference`.

    Returns:
        Notes for the user.

    Raises:
        CheckpointError, ConfigError: as in `BnbForConditionalGeneration.from_reference`.
        DataError: ``output`` exists already, or the tokenizer does not fit.
    """
    refuse_directory(output, is_new=True)
    if tokenizer is None and any((source / name).is_file() for name in _TOKENIZER_FILES):
        tokenizer = source
    model = BnbForConditionalGeneration.from_reference(source, **(overrides or {}))
    loaded = None if tokenizer is None else load_tokenizer(tokenizer)
    if loaded is not None and vocabulary_size(loaded) != model.config.encoder.vocab_size:
        raise DataError(
            f"{tokenizer}: has {vocabulary_size(loaded)} tokens, but the model's encoder has"
            f" {model.config.encoder.vocab_size}; give the tokenizer of its training"
        )
    pooler, is_broken = reference_pooler(source, model.config.encoder.hidden_size)
    with new_directory(output) as directory:
        model.save_pretrained(directory, state_dict={**model.state_dict(), **pooler})
        if loaded is not None:
            save_tokenizer(loaded, directory)
    notes = []
    if was_vae(source):
        notes.append(
            f"note: {source} was trained with is_vae true; {output} has the mean of its latents, as the reference"
            " decodes (z = mu), and no variance: training it further is training of the deterministic model"
        )
    if is_broken:
        notes.append(
            f"note: encoder.pooler.dense of {source} is no whole pooler and is left out; a classifier that begins with"
            f" {output} has a new one"
        )
    if loaded is None:
        notes.append(f"note: {source} holds no tokenizer; {output} takes only token ids unless you give --tokenizer")
    return notes
