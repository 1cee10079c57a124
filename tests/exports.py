"""Small exported models with random weights that give each source a different output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.systems.bnb import BnbClassifier, BnbGenerator, BnbModelSection
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.text_lengths import Lengths
from tests.tiny import bnb_config

MAX_TOKENS = 48
#: of the models that `save_task_model` writes: fewer than they have positions
TASK_LENGTHS = Lengths(16, 20)

_TASK_MODEL_SIZE = {
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": MAX_TOKENS,
}


def save_model(directory: Path, tokenizer, **fields: Any) -> Path:
    """Write a model that gives each source a different output."""
    disable_progress_bar()  # as every command does; in a test's output it would be taken for the command's
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS}
    torch.manual_seed(0)
    model = BnbForConditionalGeneration(bnb_config(sizes, sizes, **{"decoder_length_ratio": 1.0, **fields}))
    for feedback in getattr(model.model.decoder, "feedback", None) or ():  # else it would do nothing
        torch.nn.init.normal_(feedback.weight, std=0.2)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_task_model(directory: Path, task_name: str, codec: Codec, **fields: Any) -> Path:
    """Write an untrained model of a task, with weights so large that each source has a different output.

    Args:
        directory: to write.
        task_name: of any task.
        codec: the tokenizers, and the spacing.
        fields: of the recipe's ``model`` section.
    """
    disable_progress_bar()
    task = get_task(task_name)
    section = BnbModelSection(kind="bnb", size=_TASK_MODEL_SIZE, **fields)
    system = (BnbGenerator if task.is_generation else BnbClassifier)(task, TASK_LENGTHS, codec, section)
    torch.manual_seed(0)
    model = system.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    model.save_pretrained(directory)
    system.save_files(model.config, directory)
    return directory
