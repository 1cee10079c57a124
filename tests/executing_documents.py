"""Executes blocks of the documents in a folder of the test, which takes the place of `work/`."""

from __future__ import annotations

import re
from pathlib import Path

from transformers import BertConfig, BertForPreTraining

from tests import documents, launching

TINY_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
}


def python(name: str, folder: Path) -> None:
    """Execute the Python block below `<!-- test: name -->`, with `work/` replaced by another folder."""
    exec(compile(moved(documents.named_blocks()[name], folder), name, "exec"), {})


def moved(text: str, folder) -> str:
    """Replace the documents' relative `work/`. Longer paths that contain a folder of this name stay as they are."""
    return re.sub(r"(?<![\w./-])work/", f"{folder}/", text)


def run(command: str, folder) -> str:
    """Run one command with `work/` replaced by a folder of the test; return its output."""
    result = launching.run(["bash", "-c", moved(command, folder)])
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def save_bert(directory: Path, tokenizer) -> None:
    """A BERT checkpoint to start from."""
    tokenizer.save_pretrained(directory)
    BertForPreTraining(BertConfig(vocab_size=len(tokenizer), **TINY_BERT)).save_pretrained(directory)
