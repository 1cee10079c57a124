"""``bnb-ds bench ctc``: measure the fused CTC head against plain implementations and its own matrix products.

Shapes: B sequences; T positions of the longest; N real positions of all sequences; S target tokens; H hidden size; V
size of the vocabulary; C rows of a chunk.
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
from bnb_ds.common.packing import PackedLayout
from bnb_ds.ctc.head import default_chunk_tokens
from bnb_ds.ctc.loss import linear_ctc_loss
from bnb_ds.ctc.operands import add_product, empty_rows, operand, product

WAYS = ("fused", "torch", "reference", "floor")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Shape:
    """Sizes B, T, S, V and H. If ragged, lengths are drawn between T/8 and T, and targets have an eighth of them."""

    batch: int
    positions: int
    targets: int
    vocab: int
    hidden: int
    ragged: bool = False

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Parse ``B,T,S,V,H`` or ``B,T,S,V,H,ragged``."""
        fields = text.split(",")
        is_ragged = fields[-1] == "ragged"
        try:
            numbers = [int(field) for field in fields[: len(fields) - is_ragged]]
        except ValueError:
            numbers = []
        if len(numbers) != 5 or min(numbers) < 1 or numbers[2] > numbers[1] or numbers[3] < 2:
            raise argparse.ArgumentTypeError(f"{text!r} is not a shape: give B,T,S,V,H or B,T,S,V,H,ragged with S <= T")
        return cls(*numbers, is_ragged)

    def __str__(self) -> str:
        names = f"B{self.batch} T{self.positions} S{self.targets} V{self.vocab} H{self.hidden}"
        return names + " ragged" * self.ragged


DEFAULT_SHAPES = (
    Shape(16, 256, 32, 28996, 256),
    Shape(8, 256, 64, 28996, 768),
    Shape(16, 256, 32, 28996, 768, ragged=True),
    Shape(8, 512, 480, 28996, 256),
)


class Case:
    """The inputs of one shape, and four ways to run forward and backward passes on them."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype, kl_weight: float, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        lengths_B = torch.full((shape.batch,), shape.positions)
        self.target_lengths = torch.full((shape.batch,), shape.targets)
        if shape.ragged:
            shortest = max(shape.positions // 8, 1)
            lengths_B = torch.randint(shortest, shape.positions + 1, (shape.batch,), generator=generator)
            lengths_B[0] = shape.positions
            self.target_lengths = (lengths_B // 8).clamp(1, shape.targets)
        hidden_BTH = torch.randn(shape.batch, shape.positions, shape.hidden, generator=generator)
        weight_VH = torch.randn(shape.vocab, shape.hidden, generator=generator) * 0.05
        labels_BS = torch.randint(1, shape.vocab, (shape.batch, shape.targets), generator=generator)
        # Neighbours differ, so that every target fits into its positions.
        labels_BS[:, 1::2] = labels_BS[:, 1::2] // 2 * 2 + 1
        labels_BS[:, ::2] = (labels_BS[:, ::2] // 2 * 2).clamp(min=2)
        self.kl_weight = kl_weight
        self.layout = PackedLayout.from_lengths(
            lengths_B.to(device), num_tokens=int(lengths_B.sum()), max_seqlen=shape.positions
        )
        self.hidden = hidden_BTH.to(device, dtype).requires_grad_()
        self.packed = self.layout.unpad(hidden_BTH.to(device, dtype)).detach().requires_grad_()
        self.weight = weight_VH.to(device, dtype).requires_grad_()
        self.bias = torch.zeros(shape.vocab, device=device, dtype=dtype).requires_grad_()
        self.labels = labels_BS.to(device)
        self.target_lengths = self.target_lengths.to(device)

    def ways(self) -> dict[str, Callable[[], Any]]:
        """Name of a way -> function that runs one forward and backward pass."""
        return dict(zip(WAYS, (self.fused, self.torch_way, self.reference, self.floor), strict=True))

    def fused(self) -> Tensor:
        """`bnb_ds.ctc.loss.linear_ctc_loss` on packed rows."""
        output = linear_ctc_loss(
            self.packed,
            self.weight,
            self.bias,
            self.labels,
            None,
            self.target_lengths,
            kl_weight=self.kl_weight,
            cu_seqlens=self.layout.cu_seqlens,
            max_input_length=self.layout.max_seqlen,
            max_target_length=self.labels.shape[1],
        )
        return self._backward(output.loss)

    def torch_way(self) -> Tensor:
        """``log_softmax``, ``F.ctc_loss`` and the KL term on padded rows."""
        log_probs = F.log_softmax(F.linear(self.hidden, self.weight, self.bias), -1, dtype=torch.float32)
        kl = -log_probs.sum() / log_probs.numel()  # the gradient of .mean() would be one more tensor of this size
        return self._backward(self._ctc(log_probs) + self.kl_weight * kl)

    def reference(self) -> Tensor:
        """The reference implementation: softmax, then log, ``CTCLoss``, and KL against a full uniform tensor."""
        probabilities = torch.softmax(F.linear(self.hidden, self.weight, self.bias).float(), -1)
        log_probs = torch.log(probabilities)
        uniform = torch.full_like(log_probs, 1 / log_probs.shape[-1])
        kl = F.kl_div(log_probs, uniform, reduction="sum") / log_probs.shape[:2].numel()
        return self._backward(self._ctc(log_probs) + self.kl_weight * kl)

    @torch.no_grad()
    def floor(self) -> None:
        """Only the three matrix products of the head, with the same chunks and buffers."""
        dtype, exact = self.weight.dtype, torch.float32
        weight_VH, hidden_NH = operand(self.weight, dtype), operand(self.packed, dtype)
        grad_weight, grad_hidden = torch.zeros_like(weight_VH, dtype=exact), torch.empty_like(hidden_NH, dtype=exact)
        chunk_tokens = default_chunk_tokens(self.weight, hidden_NH.shape[0])
        buffer_CV = empty_rows(chunk_tokens, weight_VH.shape[0], weight_VH.dtype, weight_VH.device)
        for begin in range(0, hidden_NH.shape[0], chunk_tokens):
            rows = slice(begin, begin + chunk_tokens)
            logits_CV = torch.mm(hidden_NH[rows], weight_VH.t(), out=buffer_CV[: hidden_NH[rows].shape[0]])
            product(logits_CV, weight_VH, dtype, out=grad_hidden[rows])
            add_product(grad_weight, logits_CV.t(), hidden_NH[rows], dtype)

    def _ctc(self, log_probs_BTV: Tensor) -> Tensor:
        return F.ctc_loss(
            log_probs_BTV.transpose(0, 1), self.labels, self.layout.lengths, self.target_lengths, zero_infinity=True
        )

    def _backward(self, loss: Tensor) -> Tensor:
        loss.backward()
        for leaf in (self.hidden, self.packed, self.weight, self.bias):
            leaf.grad = None
        return loss.detach()


def measure(shape: Shape, device: torch.device, dtype: torch.dtype, kl_weight: float, repeats: int) -> dict[str, Any]:
    """Measure seconds and peak bytes of the four ways for one shape."""
    ways = Case(shape, device, dtype, kl_weight).ways()
    return {
        "name": str(shape),
        "shape": asdict(shape),
        "seconds": interleaved_seconds(ways, device, repeats),
        "peak_bytes": {name: peak_bytes(run, device) for name, run in ways.items()},
    }


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table: seconds and peak MB of each way, and the gain of the fused head."""
    ways = " / ".join(WAYS)
    names = ("shape", f"s: {ways}", f"MB: {ways}", "of floor's speed", "faster than reference, torch")
    rows = []
    for result in results:
        seconds, peak = result["seconds"], result["peak_bytes"]
        row = (
            result["name"],
            " / ".join(f"{seconds[way]:.3g}" for way in WAYS),
            " / ".join(f"{peak[way] / 1e6:,.0f}" for way in WAYS),
            f"{seconds['floor'] / seconds['fused']:.0%}",
            ", ".join(f"{seconds[way] / seconds['fused']:.2f}" for way in ("reference", "torch")),
            ", ".join(f"{peak[way] / peak['fused']:.1f}" for way in ("reference", "torch")),
        )
        rows.append(row)
    return markdown_table((*names, "memory: 1/reference, 1/torch"), rows)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench ctc``."""
    describe(
        command,
        "Measure speed and peak memory of forward and backward passes of the fused CTC head, against torch, the\n"
        "reference implementation, and the head's matrix products alone.",
        "bnb-ds bench ctc --shape 16,256,32,28996,256 --repeats 3",
    )
    command.add_argument(
        "--shape",
        type=Shape.parse,
        action="append",
        metavar="B,T,S,V,H[,ragged]",
        help="sequences, positions, target tokens, vocabulary, hidden size; may be repeated (default: four shapes)",
    )
    add_common(command, dtypes=DTYPES, repeats=5)
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    setting = announce(args)
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    shapes = args.shape or DEFAULT_SHAPES
    results = [measure(shape, device, dtype, args.kl_weight, args.repeats) for shape in shapes]
    print(table(results))
    write(args.json, {**setting, "results": results})
