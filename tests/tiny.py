"""Small models and batches for tests. Their sizes differ from each other, and none is a power of two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig

from bnb_ds.common.packing import PackedLayout
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration

VOCAB = 53
MAX_POSITIONS = 24
#: fields of a model without a decoder, which reads the source with [MASK]s inserted
ENCODER_ALONE = {
    "has_decoder": False,
    "decoder_positions": "absolute",
    "decoder_tokens": True,
    "slot_tokens": "inserted",
    "decoder_latent": False,
    "mask_token_id": 4,
}


def bert_config(**overrides: Any) -> BertConfig:
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 20,
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": 0.2,  # large, so that every part of the model affects the output
    }
    return BertConfig(**{**fields, **overrides})


def bnb_config(
    encoder: dict[str, Any] | None = None, decoder: dict[str, Any] | None = None, **fields: Any
) -> BnbConfig:
    both = {"latent_size": 5, "bos_token_id": 2, "eos_token_id": 3, "decoder_positions": "shared"}
    return BnbConfig(
        encoder=bert_config(**(encoder or {})), decoder=bert_config(**(decoder or {})), **{**both, **fields}
    )


def bnb_model(seed: int = 0, dtype: torch.dtype = torch.float64, **config: Any) -> BnbForConditionalGeneration:
    """A model in evaluation mode, with random biases and LayerNorms."""
    torch.manual_seed(seed)
    model = BnbForConditionalGeneration(bnb_config(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def source_ids(lengths: list[int], seed: int = 1, vocab_size: int = VOCAB) -> list[Tensor]:
    """One int64 [n] source for each length, without [PAD]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, vocab_size, (length,), generator=generator) for length in lengths]


def layout_of(lengths: list[int]) -> PackedLayout:
    return PackedLayout.from_lengths(torch.tensor(lengths), num_tokens=sum(lengths), max_seqlen=max(lengths))


def pad_rows(rows: list[Tensor], value: int = 0) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def padded_form(sources: list[Tensor], targets: list[Tensor] | None = None) -> dict[str, Tensor]:
    """Model inputs in padded form."""
    inputs = {
        "input_ids": pad_rows(sources),
        "attention_mask": pad_rows([torch.ones_like(source) for source in sources]),
    }
    return inputs if targets is None else {**inputs, "labels": pad_rows(targets, -100)}


def packed_form(sources: list[Tensor], targets: list[Tensor] | None = None) -> dict[str, Any]:
    """Model inputs in packed form."""
    lengths = torch.tensor([0, *map(len, sources)])
    inputs = {
        "input_ids": torch.cat(sources),
        "cu_seqlens": lengths.cumsum(0, dtype=torch.int32),
        "max_seqlen": int(lengths.max()),
    }
    if targets is None:
        return inputs
    label_lengths = torch.tensor([len(target) for target in targets])
    return {**inputs, "labels": torch.cat(targets), "label_lengths": label_lengths}
