"""Training with the fused head equals training with the plain loss, over 50 steps on real text in float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bnb_ds.data.batch import PackedBatch
from bnb_ds.data.corruption import Corruption
from bnb_ds.data.loader import StepLoader
from bnb_ds.data.samples import PretrainSamples
from bnb_ds.model.target_rules import BnbTargetRules
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.shards.reader import TokenShards
from tests.tiny import bnb_config

pytestmark = pytest.mark.slow

STEPS, BATCH = 50, 6


def fused_loss(model: BnbForConditionalGeneration, batch: PackedBatch) -> Tensor:
    return model(**batch.model_inputs(torch.device("cpu"))).loss


def plain_loss(model: BnbForConditionalGeneration, batch: PackedBatch) -> Tensor:
    """The loss from all logits of the batch, with ``log_softmax`` and torch's ``ctc_loss``."""
    inputs = {name: value for name, value in batch.model_inputs(torch.device("cpu")).items() if "label" not in name}
    output = model(**inputs)
    rows = F.log_softmax(output.logits, -1).split(output.decoder_lengths.tolist())
    log_probs = torch.nn.utils.rnn.pad_sequence(list(rows))
    losses = F.ctc_loss(
        log_probs, batch.labels, output.decoder_lengths, batch.label_lengths, reduction="none", zero_infinity=True
    )
    return losses.sum() / batch.num_targets


def train(loss_of: Callable[[BnbForConditionalGeneration, PackedBatch], Tensor], shards: TokenShards) -> list[float]:
    torch.manual_seed(0)
    size = {"vocab_size": shards.vocab_size, "max_position_embeddings": 32, "initializer_range": 0.02}
    model = BnbForConditionalGeneration(bnb_config(encoder=size, decoder=size)).train()
    corruption = Corruption(0.15, 0.0, shards.special_ids["mask"], shards.vocab_size)
    samples = PretrainSamples(
        shards, sequence="truncate", max_length=24, corruption=corruption, seed=1, rules=BnbTargetRules(model.config)
    )
    loader = StepLoader(samples, seed=1, micro_batch=BATCH, accumulation_steps=1, rank=0, world_size=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for (batch,) in loader.steps(0, STEPS):
        torch.manual_seed(len(losses))  # of dropout
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_fifty_steps_equal_those_of_the_plain_loss(small_shards):
    shards = TokenShards(small_shards, "train")
    fused, plain = train(fused_loss, shards), train(plain_loss, shards)
    assert fused == pytest.approx(plain, rel=1e-5)
    assert fused[-1] < 0.8 * fused[0]
