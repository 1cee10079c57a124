"""Whether results on the device are those of float64 on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bnb_ds.bench.gpu_check.cases import SMALL, HeadBatch, Scale, model_of, training_inputs
from bnb_ds.bench.gpu_check.figures import FAILED, OK, SKIPPED, Figures
from bnb_ds.common.packing import PackedLayout
from bnb_ds.model.attention import attention_way
from bnb_ds.model.fixed_shape import RectangularBnb
from bnb_ds.model.varlen.attention_inputs import AttentionInputs
from bnb_ds.model.varlen.kernel_choice import best_way, fault_of
from bnb_ds.model.varlen.operators import WAYS, WINDOW_WAYS

_CPU = torch.device("cpu")
#: relative distances that rounding explains
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 5e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
_LENGTHS = np.array([7, 1, 30, 12])


def _dtypes(scale: Scale) -> list[torch.dtype]:
    return list(dict.fromkeys([torch.float64, torch.float32, torch.float16, scale.half]))[: 2 if scale.dry else 4]


def head(figures: Figures, scale: Scale) -> None:
    """Loss and gradients of the CTC head: even, ragged, with one rival everywhere; and the same bits twice."""
    for name, more in {"even": {}, "ragged": {"ragged": True}, "one rival": {"skewed": True}}.items():
        for dtype in _dtypes(scale):
            size = {"batch": 4, "slots": 90, "tokens": 40, "vocab": 3001, "hidden": 64, **more}
            batch, exact = HeadBatch(figures.device, dtype, **size), HeadBatch(_CPU, dtype, **size)
            exact.leaves = [leaf.detach().double().requires_grad_() for leaf in exact.leaves]
            got = batch.step()
            for part, result, known in zip(("loss", "of hidden", "of weight"), got, exact.step(), strict=False):
                figures.compare(f"CTC, {name}, {dtype}: {part}", result, known, _TOLERANCES[dtype])
            same = all(torch.equal(one, other) for one, other in zip(got, batch.step(), strict=True))
            figures.put(f"CTC, {name}, {dtype}: same bits twice", same, OK if same else FAILED)


def attention(figures: Figures, scale: Scale) -> None:
    """Every way for this device against the formula, with gradients; and dropout, whose mean must stay."""
    device = figures.device
    for dtype in _dtypes(scale):
        for name, way in WAYS.items():
            fault = fault_of(way, device, dtype, 64)
            figures.put(f"attention {name}, {dtype}", fault or "works", OK if fault is None else SKIPPED)
        for name, window_way in WINDOW_WAYS.items():
            fault = fault_of(window_way, device, dtype, 64, True)
            figures.put(f"attention {name} in a window, {dtype}", fault or "works", OK if fault is None else SKIPPED)
        if device.type == "cuda":
            choice = best_way(0, dtype, 64)
            figures.put(f"attention chosen for {dtype}", choice.way, note=str(choice.faults or ""))
    layout = PackedLayout.from_host(_LENGTHS, device)
    query, key = (torch.randn(layout.num_tokens, 12, 64, device=device).to(scale.half) for _ in range(2))
    way = attention_way(query, layout, 0.0 if scale.dry else 0.1)
    if way not in WAYS:
        return
    with torch.no_grad():
        inputs = AttentionInputs(query, key, torch.ones_like(key), layout, layout, dropout=0.1)
        draws = [WAYS[way](inputs).double() for _ in range(20)]
    values = torch.stack(draws)
    figures.check(f"dropout in {way}: distance of the mean from 1", abs(float(values.mean()) - 1), 0.02)
    figures.check(f"dropout in {way}: 0.01 / deviation", 0.01 / max(float(values.std()), 1e-9), 1.0)


def models(figures: Figures, scale: Scale) -> None:
    """Loss and gradients of whole models: CTC, a graph of slots, one token a slot; without dropout."""
    kinds: dict[str, dict[str, Any]] = {
        "CTC": {},
        "CTC with deep supervision": {"deep_supervision": True},
        "a graph of slots": {"target": "dag"},
        "one token a slot": {"target": "token", "decoder_length": "predicted"},
    }
    for name, more in kinds.items():
        exact = model_of(_CPU, torch.float64, SMALL, 0.0, **more).train()
        known = exact(**training_inputs(_LENGTHS, SMALL["vocab_size"], _CPU)).loss_sum
        known.backward()
        for dtype in _dtypes(scale):
            model = model_of(figures.device, dtype, SMALL, 0.0, **more).train()
            loss = model(**training_inputs(_LENGTHS, SMALL["vocab_size"], figures.device)).loss_sum
            loss.backward()
            tolerance = _TOLERANCES[dtype]
            figures.compare(f"{name}, {dtype}: loss", loss, known, tolerance)
            # Gradients pass through many roundings, and those of 16 bits say little more than their direction.
            weight, exact_weight = (m.model.latent.weight.grad for m in (model, exact))
            figures.compare(f"{name}, {dtype}: gradient", weight, exact_weight, 10 * tolerance)


def generation(figures: Figures, scale: Scale) -> None:
    """Outputs in float32 equal those of the CPU, alone and in a batch, greedy and by the searches."""
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, SMALL["vocab_size"], (8, 16)))
    ways: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "greedy": ({}, {}),
        "beam of 4": ({}, {"beam_size": 4}),
        "graph, lookahead": ({"target": "dag"}, {}),
        "graph, beam": ({"target": "dag"}, {"strategy": "beam"}),
        "predicted lengths": ({"target": "token", "decoder_length": "predicted"}, {"length_beam": 3}),
    }
    for name, (settings, options) in ways.items():
        exact = model_of(_CPU, torch.float64, SMALL, 0.0, **settings).eval()
        model = model_of(figures.device, torch.float64, SMALL, 0.0, **settings).eval()
        known, got = exact.generate(ids, **options), model.generate(ids.to(figures.device), **options).cpu()
        same = known.shape == got.shape and torch.equal(known, got)
        figures.put(f"generate {name}: equal to the CPU", same, OK if same else FAILED)
        rows = [model.generate(row[None].to(figures.device), **options)[0].tolist() for row in ids]
        pad = exact.config.pad_token_id or 0
        alike = sum(row == _without_end(whole, pad) for row, whole in zip(rows, got.tolist(), strict=True))
        figures.put(f"generate {name}: equal alone and in a batch", f"{alike} of 8", OK if alike == 8 else FAILED)


def _without_end(row: list[int], pad: int) -> list[int]:
    while row and row[-1] == pad:
        row = row[:-1]
    return row


def cuda_graphs(figures: Figures, scale: Scale) -> None:
    """A captured graph of the padded model gives what the model gives, on new inputs too."""
    model = model_of(figures.device, scale.half, SMALL, 0.0).eval()
    rectangular = RectangularBnb(model)
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, SMALL["vocab_size"], (2, 4, 16))).to(figures.device)
    mask = torch.ones_like(ids[0])
    with torch.inference_mode():
        expected = [rectangular(each, mask).clone() for each in ids]
        if figures.device.type != "cuda":
            figures.put("CUDA graph", "needs a GPU", SKIPPED)
            return
        replay, held = captured(rectangular, ids[0], mask)
        for number, (each, known) in enumerate(zip(ids, expected, strict=True)):
            held.copy_(each)
            same = torch.equal(replay(), known)
            figures.put(f"CUDA graph, input {number}: equal", same, OK if same else FAILED)


def captured(module: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """A function that replays a module's CUDA graph, and the input that it reads."""
    held = ids.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            module(held, mask)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = module(held, mask)

    def replay() -> torch.Tensor:
        graph.replay()
        return out

    return replay, held
