"""What TensorBoard shows besides curves: reconstructions as text, weights as histograms."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from bnb_ds.common.markdown import markdown_table
from bnb_ds.data.batch import PackedBatch
from bnb_ds.train.tracking import Tracker


def reconstruction_table(batch: PackedBatch, outputs: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> str:
    """Source, output and target of the first samples of a batch, as a Markdown table."""
    sources = batch.input_ids.split(batch.source_lengths.tolist())
    targets = batch.labels.split(batch.label_lengths.tolist())
    rows = zip(sources, outputs, targets, strict=False)  # fewer outputs are shown
    return markdown_table(("source", "output", "target"), (map(tokenizer.decode, row) for row in rows))


def log_histograms(engine: Any, tracker: Tracker, step: int) -> None:
    """Log the weights, one histogram for each parameter; ZeRO's pieces are gathered, so every rank calls it."""
    from deepspeed.utils import safe_get_full_fp32_param

    for name, parameter in engine.module.named_parameters():
        values = safe_get_full_fp32_param(parameter)
        tracker.histogram(step, f"weights/{name}", (parameter if values is None else values).detach())
