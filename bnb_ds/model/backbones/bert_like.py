"""Families whose layers are BERT's: BERT itself, RoBERTa, XLM-R, ELECTRA and DistilBERT.

All of them norm behind each sum, and have absolute positions. They differ in names of weights, in the first position,
in token types, and in the head. transformers copies `BertLayer` for each family; here all of them have that one class,
which has cross-attention too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaModel,
)
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer, BertPredictionHeadTransform
from transformers.models.electra.modeling_electra import ElectraEmbeddings
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

from bnb_ds.model.backbones.backbone import Backbone, Names


class Bert(Backbone):
    """BERT, and models of its form such as MiniLM."""

    model_type = "bert"
    config_class = BertConfig
    encoder_class = BertModel
    checkpoint_class = BertForPreTraining
    base = "bert."
    head_names: ClassVar[Names] = (("cls.predictions.decoder.", None), ("cls.predictions.", ""))
    whole_modules = ("BertEmbeddings", "BertLayer")
    shared_fields: ClassVar[tuple[str, ...]] = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "type_vocab_size",
        "hidden_act",
        "layer_norm_eps",
    )

    def special_ids(self, config: Any) -> dict[str, int | None]:
        """Those of the first models here, whatever a BERT's configuration says of padding."""
        return {"blank_token_id": 0, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}

    def embeddings(self, config: Any) -> nn.Module:
        return BertEmbeddings(config)

    def embedding_norm(self, config: Any) -> nn.Module:
        return nn.LayerNorm(self.word_size(config), eps=config.layer_norm_eps)

    def layers(self, config: Any) -> Iterable[nn.Module]:
        return (BertLayer(config, layer_idx=i) for i in range(config.num_hidden_layers))

    def head_transform(self, config: Any) -> nn.Module:
        return BertPredictionHeadTransform(config)


class Roberta(Bert):
    """RoBERTa: positions begin behind the padding's, and all tokens have one type."""

    model_type = "roberta"
    config_class = RobertaConfig
    encoder_class = RobertaModel
    checkpoint_class = RobertaForMaskedLM
    base = "roberta."
    head_names = (
        ("lm_head.decoder.", None),
        ("lm_head.dense.", "transform.dense."),
        ("lm_head.layer_norm.", "transform.LayerNorm."),
        ("lm_head.", ""),
    )
    whole_modules = ("RobertaEmbeddings", "BertLayer")

    def first_position(self, config: Any) -> int:
        return config.pad_token_id + 1

    def special_ids(self, config: Any) -> dict[str, int | None]:
        return Backbone.special_ids(self, config)

    def embeddings(self, config: Any) -> nn.Module:
        return RobertaEmbeddings(config)

    def head_transform(self, config: Any) -> nn.Module:
        return GeluTransform(config.hidden_size, config.hidden_size, config.layer_norm_eps)


class XlmRoberta(Roberta):
    """XLM-R: a RoBERTa of a hundred languages."""

    model_type = "xlm-roberta"
    config_class = XLMRobertaConfig
    encoder_class = XLMRobertaModel
    checkpoint_class = XLMRobertaForMaskedLM


class Electra(Bert):
    """ELECTRA: word embeddings may be smaller than hidden states. Only its generators have an LM head."""

    model_type = "electra"
    config_class = ElectraConfig
    encoder_class = ElectraModel
    checkpoint_class = ElectraForMaskedLM
    base = "electra."
    body_names = (("layer.", "encoder.layer."), ("embeddings.embeddings_project.", "embeddings_project."))
    head_names = (
        ("generator_lm_head.weight", None),
        ("generator_lm_head.", ""),
        ("generator_predictions.", "transform."),
    )
    whole_modules = ("ProjectedEmbeddings", "BertLayer")
    shared_fields = ("embedding_size", *Bert.shared_fields)

    def word_size(self, config: Any) -> int:
        return config.embedding_size

    def embeddings(self, config: Any) -> nn.Module:
        return ProjectedEmbeddings(config, self.embedding_projection(config))

    def embedding_projection(self, config: Any) -> nn.Module | None:
        if config.embedding_size == config.hidden_size:
            return None
        return nn.Linear(config.embedding_size, config.hidden_size)

    def head_transform(self, config: Any) -> nn.Module:
        return GeluTransform(config.hidden_size, config.embedding_size, config.layer_norm_eps)


class DistilBert(Bert):
    """DistilBERT: a BERT without token types, under other names. A half is a BERT whose types are zeros at first."""

    model_type = "distilbert"
    config_class = DistilBertConfig
    checkpoint_class = DistilBertForMaskedLM
    base = "distilbert."
    head_names = (
        ("vocab_projector.weight", None),
        ("vocab_projector.", ""),
        ("vocab_transform.", "transform.dense."),
        ("vocab_layer_norm.", "transform.LayerNorm."),
    )
    #: names in DistilBERT's layers -> in BERT's
    _PARTS = (
        ("attention.q_lin.", "attention.self.query."),
        ("attention.k_lin.", "attention.self.key."),
        ("attention.v_lin.", "attention.self.value."),
        ("attention.out_lin.", "attention.output.dense."),
        ("sa_layer_norm.", "attention.output.LayerNorm."),
        ("ffn.lin1.", "intermediate.dense."),
        ("ffn.lin2.", "output.dense."),
        ("output_layer_norm.", "output.LayerNorm."),
    )

    def half(self, config: Any) -> BertConfig:
        return BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            intermediate_size=config.hidden_dim,
            max_position_embeddings=config.max_position_embeddings,
            hidden_act=config.activation,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.attention_dropout,
            classifier_dropout=config.seq_classif_dropout,
            initializer_range=config.initializer_range,
            layer_norm_eps=1e-12,
            pad_token_id=config.pad_token_id,
        )

    def our_body(self, name: str) -> str:
        match = re.fullmatch(r"transformer\.layer\.(\d+)\.(.+)", name)
        if match is None:
            return name
        number, part = match.groups()
        theirs, ours = next(pair for pair in self._PARTS if part.startswith(pair[0]))
        return f"layer.{number}.{ours}{part.removeprefix(theirs)}"

    def extra_body(self, config: Any) -> dict[str, Tensor]:
        return {"embeddings.token_type_embeddings.weight": torch.zeros(config.type_vocab_size, config.hidden_size)}


class GeluTransform(nn.Module):
    """A head's dense layer, whose activation is GELU whatever the layers have; names are those of BERT's head."""

    def __init__(self, hidden_size: int, word_size: int, eps: float):
        super().__init__()
        self.dense = nn.Linear(hidden_size, word_size)
        self.LayerNorm = nn.LayerNorm(word_size, eps=eps)

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """[N, E]."""
        return self.LayerNorm(F.gelu(self.dense(hidden_NH)))


class ProjectedEmbeddings(ElectraEmbeddings):
    """ELECTRA's embeddings, and what makes hidden states of them."""

    def __init__(self, config: ElectraConfig, projection: nn.Module | None):
        super().__init__(config)
        self.embeddings_project = projection

    def forward(self, *args: Any, **inputs: Any) -> Tensor:
        """[1, N, H]."""
        embedded_1NE = super().forward(*args, **inputs)
        return embedded_1NE if self.embeddings_project is None else self.embeddings_project(embedded_1NE)
