"""How fast the device is at what training and generation do, beside floors that are measured in the same process."""

from __future__ import annotations

import numpy
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

from bnb_ds.bench import ctc
from bnb_ds.bench.gpu_check.accuracy import captured
from bnb_ds.bench.gpu_check.cases import HeadBatch, Scale, model_of, ragged_lengths, training_inputs
from bnb_ds.bench.gpu_check.figures import MEASURED, OK, Figures
from bnb_ds.common.packing import PackedLayout
from bnb_ds.ctc import kernels as ctc_kernels
from bnb_ds.dag import kernels as dag_kernels
from bnb_ds.model.fixed_shape import RectangularBnb
from bnb_ds.model.flops import TRAINING_FACTOR, forward_flops
from bnb_ds.model.slots import decoder_lengths
from bnb_ds.model.varlen import kernel_choice as choice
from bnb_ds.model.varlen.attention_inputs import AttentionInputs
from bnb_ds.model.varlen.kernel_choice import fault_of
from bnb_ds.model.varlen.operators import WAYS
from bnb_ds.train.hardware import DTYPES, peak_of
from bnb_ds.version import __version__

_STRIDE = 64  # row strides of a multiple of this let the matrix kernels reach their speed


def environment(figures: Figures, scale: Scale) -> None:
    """Versions, the device, and whether torch has code for it."""
    figures.put("bnb_ds, torch", f"{__version__}, {torch.__version__}")
    figures.put("transformers, numpy", f"{transformers.__version__}, {numpy.__version__}")
    try:
        import triton

        figures.put("triton", triton.__version__)
    except Exception as error:  # a broken installation may raise anything
        figures.put("triton", f"missing: {error}")
    if figures.device.type == "cuda":
        major, minor = torch.cuda.get_device_capability()
        figures.put("device", f"{torch.cuda.get_device_name()}, capability {major}.{minor}")
        built = torch.cuda.get_arch_list()
        figures.put("torch is built for", " ".join(built), OK if f"sm_{major}{minor}" in built else MEASURED)
    figures.put("CTC", ctc_kernels.description(figures.device))
    figures.put("a graph", dag_kernels.description(figures.device))
    figures.put("attention", choice.description(figures.device, scale.half, 64))


def device_floors(figures: Figures, scale: Scale) -> None:
    """A matrix product and a copy: what this device reaches today."""
    size = 64 if scale.dry else 8192
    for name, dtype in {"fp32": torch.float32, str(scale.half): scale.half}.items():
        left, right = (torch.randn(size, size, device=figures.device).to(dtype) for _ in range(2))
        millis, _ = figures.milliseconds(lambda left=left, right=right: left @ right)
        figures.put(f"matrix product {name}, TFLOP/s", 2 * size**3 / millis / 1e9)
    rows = torch.empty(2**10 if scale.dry else 2**28, dtype=torch.uint8, device=figures.device)
    millis, _ = figures.milliseconds(rows.clone)
    figures.put("copy, GB/s read and written", 2 * rows.numel() / millis / 1e6)
    small = torch.ones(1, device=figures.device)
    _, host = figures.milliseconds(lambda: [small.add_(1) for _ in range(1000)])
    figures.put("microseconds of the host for a launch", host)


def head(figures: Figures, scale: Scale) -> None:
    """The CTC head against its own three products; a random, a ragged and a skewed batch; where the time goes."""
    for name, more in {"even": {}, "ragged": {"ragged": True}, "one rival": {"skewed": True}}.items():
        batch = HeadBatch(figures.device, scale.half, **scale.head, **more)
        millis, host = figures.milliseconds(batch.step)
        floor = _products(figures, batch)
        peak, rows = figures.peak_mib(batch.step), batch.layout.num_tokens
        note = f"{millis:.2f} ms, host {host:.2f} ms, products {floor:.2f} ms, {rows} slots, peak {peak:.0f} MiB"
        figures.goal(f"head {name}: share of its products' speed", floor / millis, 0.5, note)
    figures.kernels(batch.step)


def _products(figures: Figures, batch: HeadBatch) -> float:
    """Milliseconds of the head's three products, for all rows, with a row stride that suits the kernels."""
    hidden, weight = (leaf.detach() for leaf in batch.leaves[:2])
    rows = min(1728, len(hidden))
    wide = torch.randn(rows, -(-batch.vocab // _STRIDE) * _STRIDE, device=figures.device)
    logits = wide.to(hidden.dtype)[:, : batch.vocab]
    part = hidden[:rows]
    millis, _ = figures.milliseconds(lambda: (part @ weight.t(), logits @ weight, logits.t() @ part))
    return millis * len(hidden) / rows


def head_beside_torch(figures: Figures, scale: Scale) -> None:
    """The head against logits, `log_softmax` and torch's CTC loss, and the alignment alone."""
    size = scale.head
    shape = ctc.Shape(size["batch"], size["slots"], size["tokens"], size["vocab"], size["hidden"])
    case = ctc.Case(shape, figures.device, scale.half, 0.1)
    ours, theirs = (figures.milliseconds(run, repeats=3)[0] for run in (case.fused, case.torch_way))
    figures.goal("times as fast as torch's path", theirs / ours, 3.0, f"{ours:.2f} and {theirs:.2f} ms")
    ours, theirs = (figures.peak_mib(run) for run in (case.fused, case.torch_way))
    if ours:
        figures.goal("memory of torch's path / ours", theirs / ours, 10.0, f"{ours:.0f} and {theirs:.0f} MiB")
    small = HeadBatch(figures.device, torch.float32, **{**size, "vocab": 512, "hidden": 64})
    millis, host = figures.milliseconds(small.step, repeats=3)
    figures.put("whole head at V 512: ms", millis, note=f"host {host:.1f} ms; hardly more than the alignment")
    columns = torch.randn(size["slots"], size["batch"], size["tokens"] + 1, device=figures.device)
    log_probs = columns.log_softmax(2).requires_grad_()
    labels = torch.arange(1, size["tokens"] + 1, device=figures.device).expand(size["batch"], -1).contiguous()
    lengths = [torch.full((size["batch"],), size[name]) for name in ("slots", "tokens")]

    def native() -> object:
        return torch.autograd.grad(F.ctc_loss(log_probs, labels, *lengths, reduction="sum"), log_probs)

    figures.put("torch's ctc_loss on compact columns: ms", figures.milliseconds(native)[0])


def adding_rows(figures: Figures, scale: Scale) -> None:
    """`index_put_` with equal indices, and products with a row stride that is no multiple of 8."""
    vocab, hidden, number = (50, 8, 64) if scale.dry else (28_996, 768, 16_384)
    rows, total = (torch.randn(n, hidden, device=figures.device) for n in (number, vocab))
    different = torch.arange(number, device=figures.device) % vocab
    is_padding = torch.rand(number, device=figures.device) < 0.7
    cases = {
        "all different": different,
        "all equal": torch.full_like(different, 7),
        "70% padding": different.masked_fill(is_padding, 0),
    }
    for name, index in cases.items():
        millis, _ = figures.milliseconds(lambda index=index: total.index_put_((index,), rows, accumulate=True))
        figures.put(f"index_put_ accumulate, {name}: ms", millis)
    weight, part = (torch.randn(n, hidden, device=figures.device).to(scale.half) for n in (vocab, 64))
    for name, stride in {"V": vocab, f"a multiple of {_STRIDE}": -(-vocab // _STRIDE) * _STRIDE}.items():
        logits = torch.randn(len(part), stride, device=figures.device).to(scale.half)[:, :vocab]
        millis, _ = figures.milliseconds(lambda logits=logits: (logits @ weight, logits.t() @ part))
        figures.put(f"products with a row stride of {name}: ms", millis)


def attention(figures: Figures, scale: Scale) -> None:
    """36 calls, as in a base model's step: every way that works, with and without dropout."""
    lengths = ragged_lengths(scale)
    layout = PackedLayout.from_host(lengths, figures.device)
    heads, width = (3, 8) if scale.dry else (12, 64)
    for dtype in dict.fromkeys([scale.half, torch.float32]):
        leaves = [
            torch.randn(layout.num_tokens, heads, width, device=figures.device).to(dtype).requires_grad_()
            for _ in range(3)
        ]
        signal = torch.randn_like(leaves[0])
        for name, way in WAYS.items():
            if fault_of(way, figures.device, dtype, width) is not None:
                continue
            for dropout in (0.0, 0.1):
                inputs = AttentionInputs(leaves[0], leaves[1], leaves[2], layout, layout, dropout)

                def calls(way=way, inputs=inputs, signal=signal) -> None:
                    for _ in range(36):
                        torch.autograd.grad(way(inputs), inputs.rows, signal)

                millis, host = figures.milliseconds(calls, repeats=2, warm=1)
                figures.put(f"{name}, {dtype}, dropout {dropout}: ms of 36 calls", millis, note=f"host {host:.0f} ms")


def training_step(figures: Figures, scale: Scale) -> None:
    """A base model: real tokens per second, MFU, host time, peak, kernels; 16-bit weights and torch's fused AdamW."""
    lengths = ragged_lengths(scale)
    model = model_of(figures.device, scale.half, scale.bert).train()
    inputs = training_inputs(lengths, scale.bert["vocab_size"], figures.device)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> torch.Tensor:
        loss = model(**inputs).loss_sum / 1000
        loss.backward()
        adam.step()
        adam.zero_grad()
        return loss.detach()

    millis, host = figures.milliseconds(step, repeats=4)
    flops = TRAINING_FACTOR * forward_flops(model.config, lengths, decoder_lengths(lengths, model.config))
    precision = next(name for name, dtype in DTYPES.items() if dtype == scale.half)
    peak = peak_of(figures.device, precision)
    speed = lengths.sum() / millis * 1e3
    note = f"{millis:.1f} ms, host {host:.0f} ms, {speed:,.0f} source tokens/s, peak {figures.peak_mib(step):.0f} MiB"
    if peak is None:
        figures.put("training step: ms", millis, note=note)
    else:
        figures.goal("training step: MFU on real tokens", flops / millis * 1e3 / peak.flops, 0.4, note + peak.source)
    figures.kernels(step)
    losses = [float(step()) for _ in range(12)]
    figures.check("last of 12 more losses / the first", losses[-1] / losses[0], 1.0)


def generation(figures: Figures, scale: Scale) -> None:
    """Greedy generation of base models in batches of 1, 8 and 64, and with a CUDA graph; and BERT2BERT's."""
    model, length = model_of(figures.device, scale.half, scale.bert, 0.0).eval(), 16 if scale.dry else 128
    alone = 0.0
    for rows in (1, 8, 64):
        ids = torch.randint(5, 200, (rows, length), device=figures.device)
        millis, _ = figures.milliseconds(lambda ids=ids: model.generate(ids), repeats=3)
        alone = alone or millis
        figures.put(f"generate {rows} x {length}: ms", millis, note=f"{rows / millis * 1e3:,.0f} texts/s")
    ids = torch.randint(5, 200, (1, length), device=figures.device)
    if figures.device.type == "cuda":
        with torch.inference_mode():
            replay, _ = captured(RectangularBnb(model), ids, torch.ones_like(ids))
            millis, _ = figures.milliseconds(replay)
        figures.put(f"the padded model as a CUDA graph, 1 x {length}: ms", millis, note="without reading the output")
        alone = min(alone, millis)
    theirs = _bert2bert(scale).to(figures.device, scale.half).eval()
    millis, _ = figures.milliseconds(
        lambda: theirs.generate(ids, min_new_tokens=length, max_new_tokens=length, do_sample=False), repeats=1, warm=1
    )
    figures.goal(
        "times as fast as BERT2BERT with KV cache, 1 text", millis / alone, 8.0, f"{alone:.1f}, {millis:.1f} ms"
    )


def _bert2bert(scale: Scale) -> nn.Module:
    """Greedy and autoregressive, of the same size; it does not stop before the length is reached."""
    encoder, decoder = BertConfig(**scale.bert), BertConfig(**scale.bert, is_decoder=True, add_cross_attention=True)
    model = EncoderDecoderModel(config=EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))
    special = {"decoder_start_token_id": 2, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    for name, token in special.items():
        setattr(model.config, name, token)
        setattr(model.generation_config, name, token)
    return model
