"""BLEU of reconstructions over ranks and batches, and the texts that people see."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sacrebleu.metrics import BLEU

from bnb_ds.data.tokenization import text_of
from bnb_ds.pretrain.evaluation import _bleu, _bleu_counts


def test_bleu_of_batches_adds_up_to_bleu_of_all(small_tokenizer):
    generator = np.random.default_rng(0)
    ordinary = [i for i in range(small_tokenizer.vocab_size) if i not in small_tokenizer.all_special_ids]
    targets = [generator.choice(ordinary, size).tolist() for size in (30, 12, 25, 40, 3)]
    outputs = [[token for token in target if generator.random() > 0.1] for target in targets]
    counts = np.zeros(10)
    for part in (slice(0, 2), slice(2, 5)):
        lengths = [len(target) for target in targets[part]]
        batch = SimpleNamespace(labels=torch.tensor(np.concatenate(targets[part])), label_lengths=torch.tensor(lengths))
        counts += _bleu_counts(outputs[part], batch, small_tokenizer)
    texts, references = ([small_tokenizer.decode(row) for row in rows] for rows in (outputs, targets))
    expected = BLEU(force=True).corpus_score(texts, [references]).score
    assert 20 < expected < 95
    assert _bleu(counts.tolist()) == pytest.approx(expected, abs=1e-9)


def test_texts_are_shown_without_the_frame(small_tokenizer):
    first, second = (small_tokenizer.encode(text, add_special_tokens=False) for text in ("the", "and"))
    cls, sep, pad = (getattr(small_tokenizer, f"{name}_token_id") for name in ("cls", "sep", "pad"))
    mask = small_tokenizer.mask_token_id
    assert text_of(small_tokenizer, [cls, *first, mask, sep, pad]) == small_tokenizer.decode([*first, mask])
    both = f"{small_tokenizer.decode(first)} / {small_tokenizer.decode(second)}"
    assert text_of(small_tokenizer, [cls, *first, sep, *second, sep]) == both
