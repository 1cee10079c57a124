"""ModernBERT: norms in front of each part, gated feed-forward layers, rotary positions, and windows in most layers.

Weights and their names are those of transformers' modules. Attention is computed here on packed rows. A decoder's layer
has a new part between the two that checkpoints have: cross-attention with a norm in front of it. Its queries are
rotated to the place of the source token that their slot stands for, because slots have no other position.

Shapes: N tokens of all sequences together, H hidden size, A heads, D head size.

Source: Warner et al., Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder for Fast, Memory Efficient, and
Long Context Finetuning and Inference, ACL 2025.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ModernBertConfig, ModernBertForMaskedLM, ModernBertModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.modernbert.modeling_modernbert import (
    ModernBertAttention,
    ModernBertEncoderLayer,
    ModernBertPredictionHead,
    ModernBertRotaryEmbedding,
)

from bnb_ds.common.packing import PackedLayout
from bnb_ds.errors import ConfigError
from bnb_ds.model.attention import attend
from bnb_ds.model.backbones.backbone import Backbone
from bnb_ds.model.varlen.attention_inputs import AttentionInputs

#: cosines and sines [N, D] of the angles by which queries and keys are rotated
Rotation = tuple[Tensor, Tensor]

_FULL = "full_attention"
_ROPE_TYPES = ("default", "linear", "yarn", "llama3")


class ModernBert(Backbone):
    """ModernBERT, which reads up to 8,192 tokens."""

    model_type = "modernbert"
    config_class = ModernBertConfig
    encoder_class = ModernBertModel
    checkpoint_class = ModernBertForMaskedLM
    base = "model."
    body_names = (
        ("layer.", "layers."),
        ("embeddings.word_embeddings.", "embeddings.tok_embeddings."),
        ("embeddings.LayerNorm.", "embeddings.norm."),
    )
    head_names = (("decoder.weight", None), ("decoder.", ""), ("head.", "transform."))
    whole_modules = ("WordEmbeddings", "PackedModernBertLayer")
    shared_fields = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "hidden_activation",
        "norm_eps",
        "norm_bias",
        "layer_types",
        "local_attention",
        "rope_parameters",
        "attention_bias",
        "mlp_bias",
    )

    def half(self, config: Any) -> Any:
        """The same configuration, if its rotary positions do not depend on the batch.

        Raises:
            ConfigError: they do.
        """
        for parameters in config.rope_parameters.values():
            if parameters["rope_type"] not in _ROPE_TYPES:
                raise ConfigError(
                    f"rope_type is {parameters['rope_type']!r}, where the longest sequence of a batch changes what all"
                    f" others compute: give a ModernBERT with one of: {', '.join(_ROPE_TYPES)}"
                )
        return config

    def position_rows(self, config: Any) -> int:
        return 0

    def set_dropout(self, config: Any, values: Mapping[str, float]) -> None:
        if "hidden_dropout_prob" in values:
            config.embedding_dropout = config.mlp_dropout = values["hidden_dropout_prob"]
        if "attention_probs_dropout_prob" in values:
            config.attention_dropout = values["attention_probs_dropout_prob"]

    def hidden_dropout(self, config: Any) -> float:
        return config.embedding_dropout

    def embeddings(self, config: Any) -> nn.Module:
        return WordEmbeddings(config)

    def embedding_norm(self, config: Any) -> nn.Module:
        return _norm(config)

    def layers(self, config: Any) -> Iterable[nn.Module]:
        layer = PackedModernBertDecoderLayer if getattr(config, "add_cross_attention", False) else PackedModernBertLayer
        return (layer(config, i) for i in range(config.num_hidden_layers))

    def context(self, config: Any) -> nn.Module:
        return Rotations(config)

    def final_norm(self, config: Any) -> nn.Module:
        return _norm(config)

    def head_transform(self, config: Any) -> nn.Module:
        return ModernBertPredictionHead(config)

    def has_tied_head(self, config: Any) -> bool:
        return config.tie_word_embeddings

    def feed_forward_weights(self, config: Any) -> int:
        return 3 * config.hidden_size * config.intermediate_size  # half of the first matrix makes the gate

    def attended_pairs(self, config: Any, lengths_B: np.ndarray) -> int:
        window = config.sliding_window
        all_pairs = lengths_B * lengths_B
        near_pairs = np.where(lengths_B <= window, all_pairs, lengths_B * (2 * window + 1) - window * (window + 1))
        num_local = config.layer_types.count("sliding_attention")
        return (config.num_hidden_layers - num_local) * int(all_pairs.sum()) + num_local * int(near_pairs.sum())


def _norm(config: ModernBertConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)


def _start_small(last: nn.Linear, config: ModernBertConfig) -> None:
    """New weights of a part's last matrix are smaller, because hidden states add up all parts of all layers."""
    last.initializer_range = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)


class WordEmbeddings(nn.Module):
    """Words alone, normed: there are no absolute positions and no token types."""

    def __init__(self, config: ModernBertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.LayerNorm = _norm(config)
        self.dropout = nn.Dropout(config.embedding_dropout)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor) -> Tensor:
        """[1, N, H] of words int64 [1, N]; types and positions change nothing."""
        return self.dropout(self.LayerNorm(self.word_embeddings(input_ids)))


class Rotations(nn.Module):
    """The angles of rotary positions, for layers that read all keys and for those with a window.

    They are computed anew in each pass. They are no buffers, so that no cast of the model to 16 bits rounds them, and
    a model made on the meta device has them too.
    """

    def __init__(self, config: ModernBertConfig):
        super().__init__()
        self._config = config
        self._types = sorted(set(config.layer_types))

    def forward(
        self,
        hidden_1NH: Tensor,
        position_ids_N: Tensor,
        layout: PackedLayout,
        memory_layout: PackedLayout | None = None,
    ) -> dict[str, Any]:
        """What the layers are given beside hidden states: ``rotations`` by the type of a layer.

        With a memory, ``places`` too: the rotations of cross-attention's queries and keys.
        """
        dtype = torch.promote_types(hidden_1NH.dtype, torch.float32)
        found: dict[str, Any] = {
            "rotations": {name: self._rotation(name, position_ids_N, dtype) for name in self._types}
        }
        if memory_layout is not None:
            places = source_places(layout, memory_layout), memory_layout.position_ids
            found["places"] = tuple(self._rotation(_FULL, of_tokens, dtype) for of_tokens in places)
        return found

    def _rotation(self, layer_type: str, position_ids_N: Tensor, dtype: torch.dtype) -> Rotation:
        rope_type = self._config.rope_parameters[layer_type]["rope_type"]
        begin = ROPE_INIT_FUNCTIONS.get(rope_type, ModernBertRotaryEmbedding.compute_default_rope_parameters)
        frequencies, scaling = begin(self._config, position_ids_N.device, layer_type=layer_type)
        # float32 even in a float64 model, as transformers has it.
        angles_ND = (position_ids_N[:, None].float() * frequencies).repeat(1, 2)
        return (angles_ND.cos() * scaling).to(dtype), (angles_ND.sin() * scaling).to(dtype)


def source_places(layout: PackedLayout, memory_layout: PackedLayout) -> Tensor:
    """float32 [T], where in its source of n tokens the slot j of T stands: ``j n / T``."""
    ratio_B = _real_lengths(memory_layout).float() / _real_lengths(layout)
    return layout.position_ids * ratio_B.index_select(0, layout.sequence_ids)


def _real_lengths(layout: PackedLayout) -> Tensor:
    """int64 [B], tokens of each sequence that are not masked."""
    if not layout.masks_tokens:
        return layout.lengths
    assert layout.key_mask is not None
    return layout.key_mask[:, 0, 0].sum(-1)


class PackedModernBertAttention(ModernBertAttention):
    """Self-attention of packed rows, in a window or not."""

    def forward(self, hidden_1NH: Tensor, rotation: Rotation, layout: PackedLayout) -> Tensor:
        """[1, N, H]."""
        query_NAD, key_NAD, value_NAD = self.Wqkv(hidden_1NH[0]).unflatten(-1, (3, -1, self.head_dim)).unbind(1)
        attended_NAD = attend(
            AttentionInputs(
                rotated(query_NAD, rotation),
                rotated(key_NAD, rotation),
                value_NAD,
                layout,
                layout,
                dropout=self.attention_dropout if self.training else 0.0,
                window=None if self.sliding_window is None else self.sliding_window - 1,
            )
        )
        return self.out_drop(self.Wo(attended_NAD.flatten(1)))[None]


def rotated(rows_NAD: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys, rotated by the angles of their positions. Su et al., RoFormer, 2021, equation 34."""
    cosines_N1D, sines_N1D = (part[:, None] for part in rotation)
    first, second = rows_NAD.to(cosines_N1D.dtype).chunk(2, -1)
    turned_NAD = torch.cat((-second, first), -1)
    return (torch.cat((first, second), -1) * cosines_N1D + turned_NAD * sines_N1D).to(rows_NAD.dtype)


class PackedModernBertLayer(ModernBertEncoderLayer):
    """A layer of packed rows: self-attention and a gated feed-forward layer, with a norm in front of each."""

    def __init__(self, config: ModernBertConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.attn = PackedModernBertAttention(config, layer_idx)
        for last in (self.attn.Wo, self.mlp.Wo):
            _start_small(last, config)

    def forward(self, hidden_1NH: Tensor, *, layout: PackedLayout, rotations: dict[str, Rotation]) -> Tensor:
        """[1, N, H]."""
        hidden_1NH = hidden_1NH + self.attn(self.attn_norm(hidden_1NH), rotations[self.attention_type], layout)
        return hidden_1NH + self.mlp(self.mlp_norm(hidden_1NH))


class PackedModernBertDecoderLayer(PackedModernBertLayer):
    """A layer with cross-attention to a memory between its two parts."""

    def __init__(self, config: ModernBertConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.crossattention_norm = _norm(config)
        self.crossattention = CrossAttention(config)

    def forward(  # type: ignore[override]
        self,
        hidden_1TH: Tensor,
        attention_mask: None,
        memory_1NH: Tensor,
        *,
        layout: PackedLayout,
        memory_layout: PackedLayout,
        rotations: dict[str, Rotation],
        places: tuple[Rotation, Rotation],
    ) -> Tensor:
        """[1, T, H]."""
        hidden_1TH = hidden_1TH + self.attn(self.attn_norm(hidden_1TH), rotations[self.attention_type], layout)
        queries_1TH = self.crossattention_norm(hidden_1TH)
        hidden_1TH = hidden_1TH + self.crossattention(queries_1TH, memory_1NH, layout, memory_layout, places)
        return hidden_1TH + self.mlp(self.mlp_norm(hidden_1TH))


class CrossAttention(nn.Module):
    """Attention to the whole memory, without a window; its names are those of ModernBERT's self-attention."""

    def __init__(self, config: ModernBertConfig):
        super().__init__()
        size, bias = config.hidden_size, config.attention_bias
        self.head_dim = size // config.num_attention_heads
        self.attention_dropout = config.attention_dropout
        self.Wq = nn.Linear(size, size, bias=bias)
        self.Wkv = nn.Linear(size, 2 * size, bias=bias)
        self.Wo = nn.Linear(size, size, bias=bias)
        self.out_drop = nn.Dropout(config.attention_dropout)
        _start_small(self.Wo, config)

    def forward(
        self,
        hidden_1TH: Tensor,
        memory_1NH: Tensor,
        layout: PackedLayout,
        memory_layout: PackedLayout,
        places: tuple[Rotation, Rotation],
    ) -> Tensor:
        """[1, T, H]."""
        query_TAD = self.Wq(hidden_1TH[0]).unflatten(-1, (-1, self.head_dim))
        key_NAD, value_NAD = self.Wkv(memory_1NH[0]).unflatten(-1, (2, -1, self.head_dim)).unbind(1)
        attended_TAD = attend(
            AttentionInputs(
                rotated(query_TAD, places[0]),
                rotated(key_NAD, places[1]),
                value_NAD,
                layout,
                memory_layout,
                dropout=self.attention_dropout if self.training else 0.0,
            )
        )
        return self.out_drop(self.Wo(attended_TAD.flatten(1)))[None]
