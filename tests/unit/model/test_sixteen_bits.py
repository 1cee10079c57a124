"""Every loss and head in float16 and bfloat16, on sources of 512 and 1,024 tokens: finite, and near to float32.

Squares of distances, exponentials and sums over tokens leave the range of float16 there.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration

from bnb_ds.baselines.seq2seq import AutoregressiveModel
from bnb_ds.model.classification import BnbForSequenceClassification
from bnb_ds.model.length import LengthPredictor
from bnb_ds.modeling import BnbForConditionalGeneration, BnbForPretraining
from tests.tiny import bnb_config, layout_of, packed_form, source_ids

SIZE = {
    "hidden_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "max_position_embeddings": 1024,
    "initializer_range": 0.05,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
BART = {"d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 53, "dropout": 0.0}
MODELS: dict[str, dict[str, Any]] = {
    "ctc": {},
    "ctc, each sample the same, smoothing": {"loss_reduction": "sample", "kl_weight": 0.1},
    "predicted lengths": {"decoder_length": "predicted", "kl_weight": 0.1},
    "predicted lengths, ctc": {"decoder_length": "predicted", "target": "ctc"},
    "graph": {"target": "dag", "decoder_length_ratio": 1.0},
    "glancing": {"decoder_length": "predicted", "decoder_tokens": True, "mask_token_id": 1},
    "masked tokens": {},
    "classes": {"num_labels": 3},
    "scores": {"num_labels": 1},
    "autoregressive": {},
}
#: torch's CPU kernels add up the gradients of these over tokens in 16 bits
SUMMED_BY_TORCH = ("token_type_embeddings", "LayerNorm", "layer_norm", "layernorm")


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "autoregressive":
        bart = BartForConditionalGeneration(BartConfig(**BART, **HEADS, max_position_embeddings=1024))
        return AutoregressiveModel(bart, begins_with_start=False, label_smoothing=0.1).train()
    classes = {"masked tokens": BnbForPretraining}
    if name in ("classes", "scores"):
        classes[name] = BnbForSequenceClassification
    config = bnb_config(SIZE, SIZE, **MODELS[name])
    return classes.get(name, BnbForConditionalGeneration)(config).train()


def inputs(name: str, length: int) -> dict[str, Any]:
    sources = source_ids([length, length // 2])
    if name in ("classes", "scores"):
        labels = torch.tensor([2, 1]) if name == "classes" else torch.tensor([300.0, -1.0])  # a square of 90,000
        return {**packed_form(sources), "labels": labels}
    # The steps of a graph's loss are as many as target tokens, each over all pairs of slots.
    num_targets = [40, 30] if name == "graph" else [length - 5, length // 2 - 5]
    targets = source_ids(num_targets, seed=2)
    given = packed_form(sources, targets)
    if name == "masked tokens":
        index = torch.arange(0, length, 7)
        given |= {"masked_index": index, "masked_labels": given["input_ids"][index]}
    return given


@functools.cache
def result(name: str, length: int, dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    model = make(name).to(dtype)
    given = inputs(name, length)
    if name == "glancing":
        given |= {"glance_ratio": 0.5, "glance_draws": torch.linspace(0, 0.99, given["labels"].numel())}
    output = model(**given)
    loss = output.loss + (output.encoder_mlm_sum if name == "masked tokens" else 0.0)
    assert loss.dtype == torch.float32
    loss.backward()
    gradients = {key: p.grad.float() for key, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [512, 1024])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_finite_and_near_to_float32(name, length, dtype):
    exact, exact_gradients = result(name, length, torch.float32)
    loss, gradients = result(name, length, dtype)
    assert loss == pytest.approx(exact, rel=2e-3)
    assert gradients.keys() == exact_gradients.keys()
    assert [key for key, gradient in gradients.items() if not gradient.isfinite().all()] == []
    compared = [key for key in gradients if not any(part in key for part in SUMMED_BY_TORCH)]
    ours, wanted = (torch.cat([of[key].flatten() for key in compared]) for of in (gradients, exact_gradients))
    assert (ours - wanted).norm() < (0.005 if dtype == torch.float16 else 0.025) * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_mean_of_large_latents_stays_in_range(dtype):
    """1,024 latents of 100 add up to more than float16 holds; their mean does not."""
    predictor = LengthPredictor(bnb_config(decoder_length="predicted"))
    latents = torch.full((1024, 5), 100.0, requires_grad=True)
    exact = predictor(latents, layout_of([1024]))
    got = predictor.to(dtype)(latents.to(dtype), layout_of([1024]))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), exact, rtol=0.02, atol=0.5)
    got.float().square().sum().backward()
    assert latents.grad.isfinite().all()


def test_no_masked_token_is_a_loss_of_zero_however_large_the_weights():
    """The sum of all weights is infinite in float16, and 0 times it is not a number."""
    model = BnbForPretraining(bnb_config(SIZE, SIZE)).half()
    with torch.no_grad():
        model.model.encoder.embeddings.word_embeddings.weight.fill_(300.0)
    nothing = torch.zeros(0, dtype=torch.int64)
    hidden = torch.ones(0, 24, dtype=torch.float16)
    loss = model._nats(model.encoder_mlm_head(hidden), nothing)
    assert loss.item() == 0
    loss.backward()
    gradients = [model.model.encoder.embeddings.word_embeddings.weight.grad, model.encoder_mlm_head.bias.grad]
    assert all(gradient is not None and bool((gradient == 0).all()) for gradient in gradients)
