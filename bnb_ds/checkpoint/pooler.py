"""BERT's pooler, which pre-training neither has nor changes, but which a classifier begins with.

A run keeps the pooler of the checkpoint that it starts from in a file beside its configuration, and an export writes
it into the model's weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bnb_ds.common.files import disk_errors
from bnb_ds.common.hub import checkpoint_errors
from bnb_ds.config.model_section import ModelSection
from bnb_ds.model.classification import BnbForSequenceClassification
from bnb_ds.model.from_bert import read_bert

#: in the ``model`` directory of a run
POOLER_FILE = "pooler.safetensors"


def keep_pooler(section: ModelSection, directory: Path) -> None:
    """Write the pooler of the checkpoint that a recipe's ``model`` section names; nothing if it has none.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    path = directory / POOLER_FILE
    pooler = None if path.is_file() else _pooler_of(section)
    if pooler is not None:
        with disk_errors(path):
            save_file({f"pooler.{name}": weight.contiguous() for name, weight in pooler.items()}, path)


def kept_pooler(directory: Path) -> dict[str, Tensor]:
    """The weights that `keep_pooler` wrote, under the names of a classifier's; empty if there are none."""
    path = directory / POOLER_FILE
    if not path.is_file():
        return {}
    with checkpoint_errors(path, "pooler"):
        return load_file(path)


def _pooler_of(section: ModelSection) -> dict[str, Tensor] | None:
    if section.encoder is not None:
        return read_bert(section.encoder).pooler
    if section.checkpoint is None:
        return None
    with checkpoint_errors(section.checkpoint, "BERT-NAR-BERT model"):
        model, info = BnbForSequenceClassification.from_pretrained(
            section.checkpoint, dtype=torch.float32, output_loading_info=True
        )
    has_pooler = not any(name.startswith("pooler.") for name in info["missing_keys"])
    return model.pooler.state_dict() if has_pooler else None
