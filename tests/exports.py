"""Small exported models with random weights that give each source a different output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from bnb_ds.modeling import BnbForConditionalGeneration
from tests.tiny import bnb_config

MAX_TOKENS = 48


def save_model(directory: Path, tokenizer, **fields: Any) -> Path:
    """Write a model that gives each source a different output."""
    disable_progress_bar()  # as every command does; in a test's output it would be taken for the command's
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS}
    torch.manual_seed(0)
    model = BnbForConditionalGeneration(bnb_config(sizes, sizes, **{"decoder_length_ratio": 1.0, **fields}))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
