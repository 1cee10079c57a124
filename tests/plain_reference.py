"""The model of the paper in its simplest form: one sequence at a time, no packing, no padding, no fused attention.

The encoder is ``transformers.BertModel``; decoder and head are written out. It is slow, and only for tests.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel

from bnb_ds.modeling import BnbForConditionalGeneration


def plain_encode(model: BnbForConditionalGeneration, ids: Tensor, token_types: Tensor | None = None) -> Tensor:
    """[n, H] of one source [n], by transformers' own BertModel."""
    config = copy.deepcopy(model.config.encoder)
    config._attn_implementation = "eager"
    bert = BertModel(config, add_pooling_layer=False).to(model.dtype).eval()
    names = {
        (f"encoder.{name}" if name.startswith("layer.") else name): weight
        for name, weight in model.model.encoder.state_dict().items()
    }
    bert.load_state_dict(names)
    types = None if token_types is None else token_types[None]
    with torch.no_grad():
        return bert(input_ids=ids[None], token_type_ids=types).last_hidden_state[0]


def plain_slots(num_source: int, ratio: tuple[int, int], offset: int, shared: bool) -> list[tuple[int, int, int]]:
    """(source token, position, token type) of each slot; ``ratio`` is a fraction."""
    num_slots = math.ceil(num_source * ratio[0] / ratio[1]) + offset
    slots = []
    for slot in range(num_slots):
        token = slot * num_source // num_slots
        is_first = not slots or slots[-1][0] != token
        slots.append((token, token if shared else slot, 0 if is_first or not shared else 1))
    return slots


@torch.no_grad()
def plain_logits(model: BnbForConditionalGeneration, encoded: Tensor, slots: list[tuple[int, int, int]]) -> Tensor:
    """[T, V] of one source, from its encoder states [n, H]."""
    body, config = model.model, model.config.decoder
    latent = body.latent(encoded)
    memory = encoded if body.enc_to_dec_proj is None else body.enc_to_dec_proj(encoded)
    embeddings = body.decoder.embeddings
    rows = []
    for token, position, token_type in slots:
        latent_embedding = F.gelu(embeddings.latent_projection(latent[token]))
        rows.append(
            latent_embedding
            + embeddings.position_embeddings.weight[position]
            + embeddings.token_type_embeddings.weight[token_type]
        )
    hidden = embeddings.LayerNorm(torch.stack(rows))
    for layer in body.decoder.layer:
        hidden = _attend(layer.attention, hidden, hidden, config.num_attention_heads)
        hidden = _attend(layer.crossattention, hidden, memory, config.num_attention_heads)
        inner = F.gelu(layer.intermediate.dense(hidden))
        hidden = layer.output.LayerNorm(layer.output.dense(inner) + hidden)
    transform = model.lm_head.transform
    hidden = transform.LayerNorm(F.gelu(transform.dense(hidden)))
    return hidden @ embeddings.word_embeddings.weight.T + model.lm_head.bias


def _attend(attention: nn.Module, queries: Tensor, keys: Tensor, num_heads: int) -> Tensor:
    query, key, value = attention.self.query(queries), attention.self.key(keys), attention.self.value(keys)
    size = query.shape[1] // num_heads
    heads = []
    for head in range(num_heads):
        columns = slice(head * size, (head + 1) * size)
        scores = query[:, columns] @ key[:, columns].T / math.sqrt(size)
        heads.append(scores.softmax(-1) @ value[:, columns])
    return attention.output.LayerNorm(attention.output.dense(torch.cat(heads, 1)) + queries)
