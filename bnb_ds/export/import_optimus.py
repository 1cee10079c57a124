"""``bnb-ds import-optimus``: convert an encoder of Optimus to a plain BERT.

Optimus (Li et al., EMNLP 2020) is a VAE: a BERT, a GPT-2, and a latent between them. Its results on GLUE are those of
its encoder alone, whose latent is not used there: the pooled first token goes to a linear layer. So the encoder without
its latent is a BERT checkpoint, for ``model.kind: classifier``.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from bnb_ds.common.files import new_directory, refuse_directory
from bnb_ds.common.hub import checkpoint_errors
from bnb_ds.data.tokenization import load_tokenizer, save_tokenizer, vocabulary_size
from bnb_ds.errors import CheckpointError, DataError
from bnb_ds.model.from_reference import read_tensors, refuse_activation

#: the layer from the pooled first token to mean and log variance of the latent
_LATENT = "linear.weight"
_CONFIG = "config.json"
_POSITIONS = "embeddings.position_ids"


def import_optimus(source: Path, output: Path, *, tokenizer: Path | None = None) -> list[str]:
    """Convert a directory ``checkpoint-encoder-STEP`` that Optimus saved.

    Args:
        source: holds ``config.json`` and ``pytorch_model.bin``.
        output: a directory that does not exist yet, or is empty.
        tokenizer: tokenizer directory or vocabulary file to save with the model; None: the one in ``source``, if any.

    Returns:
        Notes for the user.

    Raises:
        CheckpointError: the files are not those of an Optimus encoder; the message names what is wrong.
        DataError: ``output`` exists already, or the tokenizer does not fit.
    """
    refuse_directory(output, is_new=True)
    config = _read_config(source)
    if tokenizer is None and any((source / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        tokenizer = source
    loaded = None if tokenizer is None else load_tokenizer(tokenizer)
    if loaded is not None and vocabulary_size(loaded) != config.vocab_size:
        raise DataError(
            f"{tokenizer}: has {vocabulary_size(loaded)} tokens, but the model has {config.vocab_size}; give the"
            " tokenizer of its training"
        )
    path, weights = read_tensors(source)
    with checkpoint_errors(source / _CONFIG, "BERT's configuration"):
        model = BertModel(config)
    model.load_state_dict(_matched(path, weights, model.state_dict()), strict=False)
    with new_directory(output) as directory:
        model.save_pretrained(directory)
        if loaded is not None:
            save_tokenizer(loaded, directory)
    if loaded is None:
        return [f"note: {source} holds no tokenizer; a recipe with {output} needs data.tokenizer (bert-base-cased)"]
    return []


def _read_config(source: Path) -> BertConfig:
    path = source / _CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = BertConfig().to_dict()
        needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        missing = [name for name in needed if name not in values]
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give a directory checkpoint-encoder-STEP of Optimus") from None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; restore it") from None
    if missing or values.get("model_type", "bert") != "bert":
        reason = f"it has no {missing[0]}" if missing else f"its model_type is {values['model_type']}"
        raise CheckpointError(f"{path}: is not the configuration of a BERT: {reason}; give an encoder of Optimus")
    refuse_activation(path, values.get("hidden_act", "gelu"), "hidden_act")
    with checkpoint_errors(path, "BERT's configuration"):
        return BertConfig(**{name: value for name, value in values.items() if name in known and name != "dtype"})


def _matched(path: Path, weights: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of BERT.

    Raises:
        CheckpointError: a weight is missing, left over or has another shape; the message names all of them.
    """
    faults = [f"{name} is missing" for name in (_LATENT, *ours) if name not in weights and name != _POSITIONS]
    faults += [f"{name} is unknown" for name in weights if name not in (*ours, _LATENT, _POSITIONS)]
    faults += [
        f"{name} has shape {list(weights[name].shape)}, not {list(weight.shape)}"
        for name, weight in ours.items()
        if name in weights and weights[name].shape != weight.shape
    ]
    if faults:
        raise CheckpointError(
            f"{path}: does not fit an encoder of Optimus: {'; '.join(faults)}; give another directory"
        )
    return {name: weights[name].to(torch.float32) for name in ours if name != _POSITIONS}
