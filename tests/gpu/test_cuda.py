"""What only a CUDA device can show; skipped, with a reason, where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration
from tests import launching
from tests.jobs import Job

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

BERT = {
    "vocab_size": 200,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def packed_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([7, 1, 30, 12])
    tokens = torch.randint(5, 200, (int(lengths.sum()),), generator=generator)
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int()
    return {"input_ids": tokens, "cu_seqlens": cu_seqlens, "labels": tokens, "label_lengths": lengths}


def test_cuda_equals_cpu_in_float64():
    torch.manual_seed(0)
    model = BnbForConditionalGeneration(BnbConfig(encoder=BERT, decoder_positions="shared")).double()
    inputs = packed_inputs()
    on_cpu = model(**inputs, return_logits=True)
    on_cpu.loss_sum.backward()
    gradient = model.model.latent.weight.grad.clone()
    model.zero_grad()
    model.cuda()
    on_cuda = model(**{name: tensor.cuda() for name, tensor in inputs.items()}, return_logits=True)
    on_cuda.loss_sum.backward()
    assert (on_cuda.logits.cpu() - on_cpu.logits).abs().max() <= 1e-10
    assert abs(on_cuda.loss_sum.item() - on_cpu.loss_sum.item()) <= 1e-9
    assert (model.model.latent.weight.grad.cpu() - gradient).abs().max() <= 1e-9


def test_pinned_batches_arrive_without_waiting(small_shards):
    from bnb_ds.corruption import Corruption
    from bnb_ds.samples import PretrainSamples
    from bnb_ds.shards import TokenShards

    shards = TokenShards(small_shards, "train")
    noise = Corruption(0.15, 0.5, shards.special_ids["mask"], shards.vocab_size)
    config = BnbConfig(encoder=BERT)
    samples = PretrainSamples(shards, sequence="truncate", max_length=16, corruption=noise, seed=0, config=config)
    batch = samples.batch(np.arange(3), np.zeros(3, dtype=np.int64))
    torch.cuda.set_sync_debug_mode("error")
    try:
        inputs = batch.pinned().model_inputs(torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(inputs["input_ids"].cpu(), batch.input_ids)
    assert torch.equal(inputs["labels"].cpu(), batch.labels)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_pretraining_on_cuda(tmp_path, small_shards, precision):
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    changes = {} if precision == "fp32" else {precision: {"enabled": True}}
    job = Job(tmp_path, small_shards, **changes)
    result = launching.run(job.command("steps=20", ranks=1), env=launching.environment(DS_ACCELERATOR="cuda"))
    assert result.returncode == 0, result.stdout + result.stderr
    losses = [loss for _, loss in job.scalars()["train/loss"]]
    assert losses[-1] < losses[0]
