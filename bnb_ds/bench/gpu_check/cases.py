"""What the parts of the check compute: sizes, batches and models, small in a dry run on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout
from bnb_ds.ctc.loss import linear_ctc_loss
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration

_BASE = {
    "vocab_size": 28_996,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}
#: three heads of 8 and awkward sizes, for comparisons with float64
SMALL = {
    "vocab_size": 203,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 44,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Scale:
    """Sizes of the check: those of BERT base on a GPU, tiny ones in a dry run on a CPU."""

    dry: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.dry else torch.device("cuda", 0)

    @cached_property
    def half(self) -> torch.dtype:
        """The 16-bit dtype of the device; float32 in a dry run."""
        if self.dry:
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16

    @property
    def head(self) -> dict[str, int]:
        """Sequences, slots, target tokens, vocabulary and hidden size of the loss that has goals."""
        names = ("batch", "slots", "tokens", "vocab", "hidden")
        return dict(zip(names, (3, 24, 8, 203, 24) if self.dry else (32, 512, 250, 28_996, 768), strict=True))

    @property
    def bert(self) -> dict[str, Any]:
        """Of each half of the model."""
        return SMALL if self.dry else _BASE

    @property
    def sequences(self) -> int:
        """Of a micro batch."""
        return 3 if self.dry else 20


@dataclass
class HeadBatch:
    """One batch of the CTC head.

    Attributes:
        ragged: lengths differ, most are short.
        skewed: one class is the rival everywhere, as at the start of training.
    """

    device: torch.device
    dtype: torch.dtype
    batch: int
    slots: int
    tokens: int
    vocab: int
    hidden: int
    ragged: bool = False
    skewed: bool = False
    leaves: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        draw = np.random.default_rng(0)
        lengths, tokens = np.full(self.batch, self.slots), np.full(self.batch, self.tokens)
        if self.ragged:
            tokens = (draw.random(self.batch) ** 2 * (self.tokens - 1)).astype(np.int64) + 1
            tokens[0] = self.tokens
            lengths = np.minimum(tokens * 2, self.slots)
            lengths[0] = self.slots
        self.layout, self.tokens_host = PackedLayout.from_host(lengths, self.device), tokens
        labels = draw.integers(2, self.vocab - 1, int(tokens.sum()))
        # Neighbours differ, so that every target fits into its slots.
        labels[1::2] = labels[1::2] // 2 * 2 + 1
        labels[::2] = np.maximum(labels[::2] // 2 * 2, 2)
        self.labels, self.target_lengths = (torch.from_numpy(x).to(self.device) for x in (labels, tokens))
        bias = np.zeros(self.vocab)
        if self.skewed:
            bias[self.vocab // 2] = 30.0
        shapes = (self.layout.num_tokens, self.hidden), (self.vocab, self.hidden)
        values = [draw.standard_normal(shape, np.float32) for shape in shapes]
        values[1] *= 0.05
        # Rounded first, so that every dtype computes from the same numbers.
        rounded = [torch.from_numpy(np.asarray(value, np.float32)).to(self.dtype) for value in (*values, bias)]
        self.leaves = [tensor.to(self.device).requires_grad_() for tensor in rounded]

    def loss(self, kl_weight: float = 0.1) -> Tensor:
        return linear_ctc_loss(
            *self.leaves,
            self.labels,
            None,
            self.target_lengths,
            reduction="token_sum",
            kl_weight=kl_weight,
            cu_seqlens=self.layout.cu_seqlens,
            max_input_length=self.layout.max_seqlen,
            max_target_length=int(self.tokens_host.max()),
        ).loss

    def step(self) -> tuple[Tensor, ...]:
        """The loss and its three gradients."""
        loss = self.loss()
        return loss.detach(), *torch.autograd.grad(loss, self.leaves)


def model_of(
    device: torch.device, dtype: torch.dtype, bert: dict[str, Any], dropout: float = 0.1, **more: Any
) -> BnbForConditionalGeneration:
    """A model of random weights, the same on every device."""
    size = {**bert, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    torch.manual_seed(0)
    settings = {"decoder_positions": "shared", "decoder_length_ratio": 2.0, "bos_token_id": 2, "eos_token_id": 3}
    model = BnbForConditionalGeneration(BnbConfig(encoder=size, latent_dropout=dropout, **{**settings, **more}))
    return model.to(device, dtype)


def training_inputs(lengths: np.ndarray, vocab_size: int, device: torch.device) -> dict[str, Any]:
    """A packed micro batch whose targets are its sources, as a loader gives it."""
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, vocab_size, int(lengths.sum()))).to(device)
    starts = torch.from_numpy(np.concatenate(([0], lengths.cumsum())).astype(np.int32))
    return {"input_ids": ids, "cu_seqlens": starts, "labels": ids, "label_lengths": torch.from_numpy(lengths)}


def ragged_lengths(scale: Scale, sequences: int | None = None) -> np.ndarray:
    """Tokens of each sequence: between a fifth and all positions."""
    longest, number = scale.bert["max_position_embeddings"], sequences or scale.sequences
    lengths = (np.random.default_rng(0).random(number) * 0.8 * longest).astype(np.int64) + longest // 5
    lengths[0] = longest
    return lengths
