"""Loss and token accuracy on held-out samples. Every evaluation corrupts the samples in the same way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from sacrebleu.metrics import BLEU
from transformers import PreTrainedTokenizerBase

from bnb_ds.common.markdown import markdown_lists
from bnb_ds.data.batch import PackedBatch
from bnb_ds.data.samples import PretrainSamples
from bnb_ds.data.tokenization import text_of
from bnb_ds.decoding.decode import greedy_rows
from bnb_ds.distributed import ranks
from bnb_ds.distributed.shares import rounds

_EVALUATION_EPOCH = 0
_NGRAMS = 4  # BLEU's longest
_BLEU_COUNTS = 2 + 2 * _NGRAMS


@torch.no_grad()
def evaluate(
    engine: Any,
    source: PretrainSamples,
    *,
    num_samples: int,
    micro_batch: int,
    device: torch.device,
    tokenizer: PreTrainedTokenizerBase | None = None,
    show: Callable[[PackedBatch, list[list[int]]], None] | None = None,
    check_in: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Score a model on the first ``num_samples`` samples of a source, which may be a mixture. The ranks share them.

    Args:
        engine: DeepSpeed engine.
        source: held-out samples.
        num_samples: most samples to read.
        micro_batch: samples of a batch.
        device: device of this rank.
        tokenizer: writes the outputs as texts for BLEU; None: BLEU is not computed.
        show: called on rank 0 with its first batch and the greedy outputs, lists of token ids.
        check_in: called before each batch, on all ranks together. If it raises, the evaluation ends.

    Returns:
        ``eval/loss``: the model's loss over all samples, normalised as in training; NaN if no target fits its slots.
        ``eval/loss_samples``: number of samples whose targets fit. The others add nothing to the loss.
        ``eval/token_accuracy``: 1 - edit distance / target tokens, at least 0; both are summed over the samples. This
        is the complement of the token error rate of the greedy outputs. With length classification, the outputs have
        the lengths of the targets.
        ``eval/bleu``: sacreBLEU of the greedy outputs against the targets, both as texts.
    """
    totals = torch.zeros(6 + _BLEU_COUNTS, dtype=torch.float64, device=device)
    engine.eval()
    try:
        chosen = source.to_evaluate(num_samples)
        for ids, counted in rounds(chosen, micro_batch):
            check_in()
            batch = source.batch(ids, np.full(ids.size, _EVALUATION_EPOCH))
            output = engine(**batch.model_inputs(device), return_best=True)
            if counted:
                slots_B = torch.from_numpy(batch.decoder_lengths).to(device)
                outputs = [row.tolist() for row in greedy_rows(output.best, slots_B, engine.module.config)]
                errors, tokens = _edit_errors(outputs, batch)
                if show is not None and ids[0] == chosen[0]:
                    show(batch, outputs)
                counts = [0] * _BLEU_COUNTS if tokenizer is None else _bleu_counts(outputs, batch, tokenizer)
                fitting = batch.num_samples - batch.num_infeasible
                totals += torch.tensor(
                    [float(output.loss_sum), batch.loss_count, batch.num_targets, fitting, errors, tokens, *counts],
                    dtype=torch.float64,
                    device=device,
                )
    finally:
        engine.train()
    loss_sum, count, targets, fitting, errors, tokens, *counts = ranks.all_sum(totals).tolist()
    scores = {
        "eval/loss": loss_sum / count if targets else math.nan,
        "eval/loss_samples": int(fitting),
        "eval/token_accuracy": max(1 - errors / tokens, 0.0),
    }
    return scores if tokenizer is None else {**scores, "eval/bleu": _bleu(counts)}


def _edit_errors(outputs: list[list[int]], batch: PackedBatch) -> tuple[int, int]:
    """Edit distance between outputs and targets, and number of target tokens, both summed over a packed batch."""
    targets = batch.labels.split(batch.label_lengths.tolist())
    errors = sum(Levenshtein.distance(output, target.tolist()) for output, target in zip(outputs, targets, strict=True))
    return errors, batch.labels.numel()


def _bleu_counts(outputs: list[list[int]], batch: PackedBatch, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What BLEU is computed from, summed over a packed batch: lengths, then matches and totals of 1- to 4-grams."""
    targets = batch.labels.split(batch.label_lengths.tolist())
    texts = [
        [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        for rows in (outputs, (target.tolist() for target in targets))
    ]
    # The texts are made of tokens, and some look as if they were tokenised already, which is no fault here.
    score = BLEU(force=True).corpus_score(texts[0], [texts[1]])
    return [score.sys_len, score.ref_len, *score.counts, *score.totals]


def _bleu(counts: list[float]) -> float:
    output_length, target_length, *ngrams = (int(count) for count in counts)
    matches, totals = ngrams[:_NGRAMS], ngrams[_NGRAMS:]
    return BLEU.compute_bleu(matches, totals, output_length, target_length).score


def shown_reconstructions(batch: PackedBatch, outputs: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> str:
    """Markdown with source, output and target of the first ``len(outputs)`` samples of a batch.

    [CLS], [SEP] and padding, which every text has, are left out. [MASK] stays.
    """
    sources = batch.input_ids.split(batch.source_lengths.tolist())
    targets = batch.labels.split(batch.label_lengths.tolist())
    rows = zip(sources, outputs, targets, strict=False)  # there may be fewer outputs than samples
    return markdown_lists(
        ("source", "output", "target"), ([text_of(tokenizer, map(int, ids)) for ids in row] for row in rows)
    )
