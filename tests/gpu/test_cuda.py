"""What only a CUDA device can show; skipped, with a reason, where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertCrossAttention

from bnb_ds.common.packing import PackedLayout
from bnb_ds.model.attention import attention_way, packed_attention
from bnb_ds.model.target_rules import BnbTargetRules
from bnb_ds.model.varlen import kernel_choice as choice
from bnb_ds.model.varlen.attention_inputs import AttentionInputs
from bnb_ds.model.varlen.operators import WINDOW_WAYS
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
    from bnb_ds.data.corruption import Corruption
    from bnb_ds.data.samples import PretrainSamples
    from bnb_ds.shards.reader import TokenShards

    shards = TokenShards(small_shards, "train")
    noise = Corruption(0.15, 0.5, shards.special_ids["mask"], shards.vocab_size)
    config = BnbConfig(encoder=BERT)
    rules = BnbTargetRules(config)
    samples = PretrainSamples(shards, sequence="truncate", max_length=16, corruption=noise, seed=0, rules=rules)
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


def attention_inputs(dtype: torch.dtype, lengths: list[int]) -> torch.Tensor:
    """[1, A, N, D] in the memory order of the BERT layers."""
    generator = torch.Generator("cuda").manual_seed(len(lengths))
    rows = torch.randn(1, sum(lengths), 3, 16, device="cuda", generator=generator).to(dtype)
    return rows.transpose(1, 2).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("way", ["flash", "efficient", "jagged", "flash_attn"])
def test_varlen_attention_equals_padded(way, dtype, monkeypatch):
    if way not in choice._candidates(torch.cuda.get_device_capability(), dtype, 16):
        pytest.skip(f"this GPU, or what is installed, has no {way} for {dtype}")
    slots, sources = [7, 1, 130, 12], [3, 40, 64, 1]
    layouts = [
        PackedLayout.from_lengths(torch.tensor(n, device="cuda"), num_tokens=sum(n), max_seqlen=max(n))
        for n in (slots, sources)
    ]
    query, key, value = (attention_inputs(dtype, n) for n in (slots, sources, sources))
    signal = torch.randn_like(query.transpose(1, 2))
    results = []
    for chosen in ("padded", way):
        monkeypatch.setattr("bnb_ds.model.attention.attention_way", lambda *_, chosen=chosen: chosen)
        cross = BertCrossAttention(BertConfig(is_decoder=True, add_cross_attention=True))
        output, _ = packed_attention(cross, query, key, value, None, layout=layouts[0], memory_layout=layouts[1])
        results.append((output, *torch.autograd.grad(output, (query, key, value), signal)))
    for padded, varlen in zip(*results, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(varlen, padded, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["flash", "flash_attn"])
def test_varlen_attention_in_a_window_equals_blocks(way, dtype):
    if way not in choice._candidates(torch.cuda.get_device_capability(), dtype, 16):
        pytest.skip(f"this GPU, or what is installed, has no {way} for {dtype}")
    lengths = torch.tensor([7, 1, 530, 12], device="cuda")
    layout = PackedLayout.from_lengths(lengths, num_tokens=550, max_seqlen=530)
    generator = torch.Generator("cuda").manual_seed(0)
    rows, signal = (torch.randn(n, 550, 3, 16, device="cuda", generator=generator).to(dtype) for n in (3, 1))
    leaves = [row.requires_grad_() for row in rows.unbind()]
    results = []
    for name in ("blocks", way):
        output = WINDOW_WAYS[name](AttentionInputs(*leaves, layout, layout, window=64))
        results.append((output, *torch.autograd.grad(output, leaves, signal[0])))
    for blocks, varlen in zip(*results, strict=True):
        torch.testing.assert_close(varlen, blocks, rtol=2e-2, atol=2e-2)


def test_the_first_kernel_that_should_work_does():
    layout = PackedLayout.from_lengths(torch.tensor([2, 1], device="cuda"), num_tokens=3, max_seqlen=2)
    dtype = torch.float16
    first = [*choice._candidates(torch.cuda.get_device_capability(), dtype, 16), "padded"][0]
    assert attention_way(attention_inputs(dtype, [2, 1]), layout, 0.1) == first
    assert choice.description(torch.device("cuda", 0), dtype, 16) == f"attention {first}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_full_vocabulary_at_full_length_is_finite_in_low_precision(dtype):
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("no bf16 on this device")
    size = {**BERT, "vocab_size": 28_996, "max_position_embeddings": 512}
    model = BnbForConditionalGeneration(BnbConfig(encoder=size, decoder_length_ratio=1.0)).cuda().to(dtype).train()
    tokens = torch.randint(5, 28_996, (4, 512), device="cuda")
    labels = tokens[:, :200].clone()
    output = model(tokens, labels=labels)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())
