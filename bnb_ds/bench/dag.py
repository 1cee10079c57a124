"""``bnb-ds bench dag``: the loss of a graph of slots against the naive way and against its own matrix products.

Shapes: B sequences, L slots, S target tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bnb_ds.bench.flags import add_common, announce, write
from bnb_ds.bench.measure import interleaved_seconds, peak_bytes
from bnb_ds.common.arguments import describe
from bnb_ds.common.markdown import markdown_table
from bnb_ds.ctc.head import operand, product
from bnb_ds.dag.head import default_chunk_tokens
from bnb_ds.dag.loss import linear_dag_loss
from bnb_ds.dag.tiles import Tiles

WAYS = ("fused", "naive", "floor")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SURE_LOGIT = 16.0  # of the target's token and link in a trained-like case, above all others


@dataclass(frozen=True)
class Shape:
    """B, L, S, V, H; sure: each target takes one path of known slots, as in a trained model; else all are alike."""

    batch: int
    slots: int
    targets: int
    vocab: int
    hidden: int
    sure: bool = False

    @classmethod
    def parse(cls, text: str) -> Shape:
        """``B,L,S,V,H`` with ``,sure`` behind it or not."""
        fields = text.split(",")
        is_sure = fields[-1] == "sure"
        try:
            numbers = [int(field) for field in fields[: len(fields) - is_sure]]
        except ValueError:
            numbers = []
        if len(numbers) != 5 or min(numbers) < 1 or not 2 <= numbers[2] <= numbers[1] or numbers[3] < 2:
            raise argparse.ArgumentTypeError(f"{text!r} is no shape: give B,L,S,V,H or B,L,S,V,H,sure with 2 <= S <= L")
        return cls(*numbers, is_sure)

    def __str__(self) -> str:
        return f"B{self.batch} L{self.slots} S{self.targets} V{self.vocab} H{self.hidden}" + " sure" * self.sure


DEFAULT_SHAPES = (
    Shape(8, 256, 32, 28996, 256),
    Shape(8, 256, 32, 28996, 256, sure=True),
    Shape(8, 256, 64, 28996, 768),
)


class Case:
    """Inputs of one shape, and the three ways; each is a forward and backward pass that leaves all gradients."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        hidden_BLH = torch.randn(shape.batch, shape.slots, shape.hidden, generator=generator)
        weight_VH = torch.randn(shape.vocab, shape.hidden, generator=generator) * 0.05
        labels_BS = torch.randint(0, shape.vocab, (shape.batch, shape.targets), generator=generator)
        scores_BLL = torch.randn(shape.batch, shape.slots, shape.slots, generator=generator)
        if shape.sure:
            path_S = torch.linspace(0, shape.slots - 1, shape.targets).long()
            directions_BSH = F.normalize(weight_VH[labels_BS], dim=-1)
            hidden_BLH[:, path_S] = directions_BSH * _SURE_LOGIT / (0.05 * shape.hidden**0.5)
            scores_BLL[:, path_S[:-1], path_S[1:]] += _SURE_LOGIT
        is_backward_LL = torch.ones(shape.slots, shape.slots, dtype=torch.bool).tril()
        links_BLL = scores_BLL.masked_fill(is_backward_LL, -torch.inf)
        links_BLL[:, :-1] = links_BLL[:, :-1].log_softmax(-1)
        self.hidden = hidden_BLH.to(device, dtype).requires_grad_()
        self.weight = weight_VH.to(device, dtype).requires_grad_()
        self.bias = torch.zeros(shape.vocab, device=device, dtype=dtype).requires_grad_()
        self.log_links = links_BLL.to(device).requires_grad_()
        self.labels = labels_BS.to(device)
        self.lengths = torch.full((shape.batch,), shape.slots, device=device)
        self.target_lengths = torch.full((shape.batch,), shape.targets, device=device)

    def ways(self) -> dict[str, Callable[[], Any]]:
        """Name -> one training pass."""
        return {"fused": self.fused, "naive": self.naive, "floor": self.floor}

    def fused(self) -> Tensor:
        """`bnb_ds.dag.loss.linear_dag_loss`."""
        output = linear_dag_loss(
            self.hidden,
            self.weight,
            self.bias,
            self.log_links,
            self.labels,
            self.lengths,
            self.target_lengths,
            max_target_length=self.labels.shape[1],
        )
        return self._backward(output.loss)

    def naive(self) -> Tensor:
        """``log_softmax`` of all logits, one ``logsumexp`` over [B, L, L] for each target token, and autograd."""
        log_probs_BLV = F.log_softmax(F.linear(self.hidden, self.weight, self.bias), -1, dtype=torch.float32)
        num_slots, num_tokens = log_probs_BLV.shape[1], self.labels.shape[1]
        own_BLS = log_probs_BLV.gather(2, self.labels[:, None].expand(-1, num_slots, -1))
        # Not -inf, which would give NaN as gradients of slots that cannot be reached.
        log_links_BLL = self.log_links.clamp(min=-1e4)
        ways_BL = torch.full_like(own_BLS[..., 0], -1e4)
        ways_BL[:, 0] = own_BLS[:, 0, 0]
        for step in range(1, num_tokens):
            ways_BL = own_BLS[..., step] + torch.logsumexp(ways_BL[:, :, None] + log_links_BLL, 1)
        return self._backward((-ways_BL[:, -1] / num_tokens).mean())

    @torch.no_grad()
    def floor(self) -> None:
        """The three matrix products of any such loss and nothing else, in the same tiles and the same memory."""
        dtype, exact = self.weight.dtype, torch.float32
        weight_VH, hidden_NH = operand(self.weight, dtype), operand(self.hidden.flatten(0, 1), dtype)
        grad_weight, grad_hidden = torch.zeros_like(weight_VH, dtype=exact), torch.zeros_like(hidden_NH, dtype=exact)
        tiles = Tiles.of(hidden_NH.shape[0], weight_VH)
        if weight_VH.is_cuda:
            rows = default_chunk_tokens(self.weight, hidden_NH.shape[0])
            tiles = Tiles(hidden_NH.shape[0], weight_VH.shape[0], rows, weight_VH.shape[0])
        buffer = weight_VH.new_empty(tiles.rows * tiles.columns)
        for rows, columns in tiles:
            hidden_RH, weight_CH = hidden_NH[rows], weight_VH[columns]
            shape = (len(hidden_RH), len(weight_CH))
            logits_RC = torch.mm(hidden_RH, weight_CH.t(), out=buffer[: shape[0] * shape[1]].view(shape))
            if logits_RC.dtype == exact:
                grad_hidden[rows].addmm_(logits_RC, weight_CH)
                grad_weight[columns].addmm_(logits_RC.t(), hidden_RH)
            else:
                grad_hidden[rows] += product(logits_RC, weight_CH, exact)
                grad_weight[columns] += product(logits_RC.t(), hidden_RH, exact)

    def _backward(self, loss: Tensor) -> Tensor:
        loss.backward()
        for leaf in (self.hidden, self.weight, self.bias, self.log_links):
            leaf.grad = None
        return loss.detach()


def measure(shape: Shape, device: torch.device, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Seconds and peak bytes of the three ways at one shape."""
    ways = Case(shape, device, dtype).ways()
    return {
        "name": str(shape),
        "shape": asdict(shape),
        "seconds": interleaved_seconds(ways, device, repeats),
        "peak_bytes": {name: peak_bytes(run, device) for name, run in ways.items()},
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: seconds and peak MB of each way, and what the fused head gains."""
    ways = " / ".join(WAYS)
    names = ("shape", f"s: {ways}", f"MB: {ways}", "of floor's speed", "faster than naive", "memory: 1/naive")
    rows = []
    for result in results:
        seconds, peak = result["seconds"], result["peak_bytes"]
        row = (
            result["name"],
            " / ".join(f"{seconds[way]:.3g}" for way in WAYS),
            " / ".join(f"{peak[way] / 1e6:,.0f}" for way in WAYS),
            f"{seconds['floor'] / seconds['fused']:.0%}",
            f"{seconds['naive'] / seconds['fused']:.2f}",
            f"{peak['naive'] / peak['fused']:.1f}",
        )
        rows.append(row)
    return markdown_table(names, rows)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench dag``."""
    describe(
        command,
        "Measure the loss of a graph of slots beside the plain way and the bare matrix products.",
        "bnb-ds bench dag --shape 8,256,32,28996,256",
    )
    command.add_argument(
        "--shape",
        type=Shape.parse,
        action="append",
        metavar="B,L,S,V,H[,sure]",
        help="sequences, slots, target tokens, vocabulary, hidden size; may be repeated (default: three shapes)",
    )
    add_common(command, dtypes=DTYPES, repeats=5, smooths=False)
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    setting = announce(args)
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    shapes = args.shape or DEFAULT_SHAPES
    results = [measure(shape, device, dtype, args.repeats) for shape in shapes]
    print(table(results))
    write(args.json, {**setting, "results": results})
