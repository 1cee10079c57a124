"""``bnb-ds bench generate --against reference-style``: measure BnB against the way of the reference implementation.

Both run the same weights. The reference pads every source to 512 tokens, has 512 decoder slots, and computes all their
logits in float32. All weights are random, because speed depends only on sizes and lengths. The number of decoder slots
matters most, so every figure states the policy that sets it. `bnb_ds.bench.generation.latency` measures against
autoregressive models.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig

from bnb_ds.bench.measure import interleaved
from bnb_ds.ctc.greedy import collapse
from bnb_ds.decoding.decode import generate_rows
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.export.onnx import write_graph
from bnb_ds.generate.engines import CompiledEngine, Engine, OnnxEngine, TorchEngine
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.slots import decoder_lengths
from bnb_ds.modeling import BnbForConditionalGeneration

#: name -> hidden size, layers of each half, attention heads
SIZES = {"tiny": (64, 2, 2), "base": (768, 12, 12)}
POSITIONS = 512
#: size of an attention head of BERT
HEAD_SIZE = 64
ENGINES = ("torch", "compile", "onnx")

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Setting:
    """The setting of a measurement.

    Attributes:
        size: size of both models, a key of `SIZES`.
        vocab_size: vocabulary size of the sources.
        dtype: number format of our engine: a key of `bnb_ds.generate.engines.DTYPES`, or ``int8`` with ``onnx``.
        engine: our engine, one of `ENGINES`.
        device: device of both models.
        repeats: rounds of which the median is taken, after one warm-up round.
        target_vocab_size: vocabulary size of the outputs; None: ``vocab_size``.
        encoder_layers, decoder_layers: layers of BnB's halves; None: those of its size.
        hidden_size: width of BnB, a multiple of `HEAD_SIZE`; None: that of its size.
    """

    size: str
    vocab_size: int
    dtype: str
    device: torch.device
    repeats: int
    engine: str = "torch"
    target_vocab_size: int | None = None
    encoder_layers: int | None = None
    decoder_layers: int | None = None
    hidden_size: int | None = None


def bnb_model(setting: Setting, **policy: Any) -> BnbForConditionalGeneration:
    """Make a BnB with random weights in fp32, on the device. Biases are random too, so that outputs vary."""
    encoder = bert_config(setting, setting.vocab_size, setting.encoder_layers)
    decoder = bert_config(setting, setting.target_vocab_size or setting.vocab_size, setting.decoder_layers)
    torch.manual_seed(0)
    model = BnbForConditionalGeneration(BnbConfig(encoder=encoder, decoder=decoder, **policy))
    with torch.no_grad():
        model.lm_head.bias.normal_(std=0.5)
    return model.eval().to(setting.device)


def bert_config(setting: Setting, vocab_size: int, num_layers: int | None = None) -> BertConfig:
    """The configuration of one half; without a number of layers it has those of the size."""
    hidden, layers, heads = SIZES[setting.size]
    if setting.hidden_size is not None:
        hidden, heads = setting.hidden_size, setting.hidden_size // HEAD_SIZE
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=num_layers or layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=POSITIONS,
    )


@torch.inference_mode()
def reference_style(model: BnbForConditionalGeneration, rows: Rows) -> list[list[int]]:
    """Decode one batch as the reference implementation does."""
    ids = torch.zeros(len(rows), POSITIONS, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    device = model.device
    with policy_of(model, {"decoder_length": "padded"}):
        logits_BTV = model(ids.to(device), mask.to(device)).logits
    path_BT = logits_BTV.argmax(-1)
    tokens, lengths = collapse(path_BT, torch.full((len(rows),), POSITIONS, device=device))
    return [row[:end] for row, end in zip(tokens.tolist(), lengths.tolist(), strict=True)]


def ours(model: BnbForConditionalGeneration, rows: Rows) -> list[list[int]]:
    """Decode one batch with `bnb_ds.decoding.decode`."""
    return [tokens for tokens, _ in generate_rows(model, rows, DecodeOptions())]


class policy_of:
    """A context in which a model has another policy of decoder slots."""

    def __init__(self, model: BnbForConditionalGeneration, policy: dict[str, Any]):
        self._config, self._policy = model.config, policy

    def __enter__(self) -> None:
        self._before = {name: getattr(self._config, name) for name in self._policy}
        vars(self._config).update(self._policy)

    def __exit__(self, *error: object) -> None:
        vars(self._config).update(self._before)


@contextmanager
def engine_of(model: BnbForConditionalGeneration, engine: str, dtype: str) -> Iterator[Engine]:
    """Make our engine: ``torch`` (packed), ``compile`` or ``onnx``. The ONNX graph is a temporary file."""
    if engine == "torch":
        yield TorchEngine(model, dtype)
    elif engine == "compile":
        yield CompiledEngine(model, dtype)
    else:
        with tempfile.TemporaryDirectory() as name:
            write_graph(model, Path(name), "int8" if dtype == "int8" else "fp32")
            yield OnnxEngine(Path(name))


def against_reference(setting: Setting, rows: Rows, batch_size: int, policy: dict[str, Any]) -> dict[str, Any]:
    """Measure both ways on the same sources, and count the outputs that are identical at equal slots."""
    baseline = bnb_model(setting, **policy)
    model = baseline if setting.dtype == "fp32" else bnb_model(setting, **policy)
    # Both ways get sorted sources; this does not slow the reference, which pads all of them to 512 tokens anyway.
    order = sorted(rows, key=len)
    batches = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
    expected = [tokens for batch in batches for tokens in reference_style(baseline, batch)]
    with policy_of(baseline, {"decoder_length": "padded"}):
        found = [tokens for batch in batches for tokens in ours(baseline, batch)]
    in_fp32 = [tokens for batch in batches for tokens in ours(baseline, batch)]
    options = DecodeOptions(token_budget=1 << 30)
    with engine_of(model, setting.engine, setting.dtype) as engine:
        written = [tokens for batch in batches for tokens, _ in engine.decode(batch, options)]
        ways = {
            "ours": lambda: [engine.decode(batch, options) for batch in batches],
            "reference-style": lambda: [reference_style(baseline, batch) for batch in batches],
        }
        timings = interleaved(ways, setting.device, setting.repeats)
    lengths = torch.tensor([len(row) for row in rows])
    slots = decoder_lengths(lengths, model.config)
    return {
        "num_sources": len(rows),
        "source_tokens": {"mean": lengths.double().mean().item(), "max": int(lengths.max())},
        "decoder_slots": {"mean": slots.double().mean().item(), "max": int(slots.max())},
        "policy": policy,
        "batch_size": batch_size,
        "identical_at_equal_slots": sum(a == b for a, b in zip(expected, found, strict=True)),
        "identical_to_fp32_torch": sum(a == b for a, b in zip(in_fp32, written, strict=True)),
        "distinct_outputs": len({tuple(tokens) for tokens in expected}),
        "timings": {name: timing.as_dict() for name, timing in timings.items()},
        "speedup_wall": timings["reference-style"].p50 / timings["ours"].p50,
        "speedup_cpu": timings["reference-style"].cpu / timings["ours"].cpu,
    }
