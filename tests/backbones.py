"""Small checkpoints of each backbone, made by transformers' own classes, for tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)
from transformers.utils.logging import disable_progress_bar

VOCAB = 53
#: tokens of the longest source
POSITIONS = 24
#: of the checkpoints that runs start from
RUN_POSITIONS = 64
_SIZE = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
_ROBERTA = {**_SIZE, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_DISTILBERT = {"dim": 12, "n_layers": 2, "n_heads": 3, "hidden_dim": 20}
_WIDE = {"hidden_size": 18, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 14}

#: name -> the class of a checkpoint with its LM head, the class of its configuration, and the fields of that
FAMILIES: dict[str, tuple[type[PreTrainedModel], type, dict[str, Any]]] = {
    "bert": (BertForMaskedLM, BertConfig, {**_SIZE, "max_position_embeddings": POSITIONS}),
    "minilm": (BertForMaskedLM, BertConfig, {**_WIDE, "max_position_embeddings": POSITIONS}),
    "roberta": (RobertaForMaskedLM, RobertaConfig, _ROBERTA),
    "xlm-roberta": (XLMRobertaForMaskedLM, XLMRobertaConfig, _ROBERTA),
    "electra": (
        ElectraForMaskedLM,
        ElectraConfig,
        {**_SIZE, "embedding_size": 8, "num_attention_heads": 4, "max_position_embeddings": POSITIONS},
    ),
    "distilbert": (DistilBertForMaskedLM, DistilBertConfig, {**_DISTILBERT, "max_position_embeddings": POSITIONS}),
}


@dataclass(frozen=True)
class Halves:
    """Which families make the halves of a model; ``decoder`` None: one checkpoint for both."""

    encoder: str
    decoder: str | None = None

    @property
    def target(self) -> str:
        """The family of the decoder."""
        return self.decoder or self.encoder


#: the models of the contract suite
CASES = {
    **{name: Halves(name) for name in FAMILIES},
    "xlm-roberta and bert": Halves("xlm-roberta", "minilm"),
    "bert and electra": Halves("bert", "electra"),
}


def checkpoint_model(family: str, seed: int = 0, **fields: Any) -> PreTrainedModel:
    """A model of transformers with its LM head, in evaluation mode. Every part of it affects the output."""
    model_class, config_class, own = FAMILIES[family]
    torch.manual_seed(seed)
    config = config_class(**{"vocab_size": VOCAB, "initializer_range": 0.2, **own, **fields})
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def save_checkpoint(folder: Path, family: str, seed: int = 0, **fields: Any) -> Path:
    """Write such a model with safetensors."""
    disable_progress_bar()
    checkpoint_model(family, seed, **fields).save_pretrained(folder)
    return folder


def padded(sources: list[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """int64 [B, L] with the padding token, and the attention mask."""
    ids = torch.nn.utils.rnn.pad_sequence(sources, batch_first=True, padding_value=pad)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(source) for source in sources], batch_first=True)
    return ids, mask


def save_start(folder: Path, family: str, tokenizer: Any, seed: int = 0) -> Path:
    """Write such a model for the vocabulary and the padding of a tokenizer, with that tokenizer, to start runs from."""
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    special = {"pad_token_id": ids["pad"], "bos_token_id": ids["cls"], "eos_token_id": ids["sep"]}
    positions = RUN_POSITIONS + (ids["pad"] + 1 if "roberta" in family else 0)
    save_checkpoint(folder, family, seed, vocab_size=len(tokenizer), max_position_embeddings=positions, **special)
    tokenizer.save_pretrained(folder)
    return folder
