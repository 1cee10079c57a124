"""What a family of pre-trained encoders must say, so that a half of the model can be made of its layers.

A half keeps the configuration class of its family. The network (`bnb_ds.model.layers`) asks the half's backbone for its
modules and runs them on packed rows; checkpoints are read and written under the family's own names.

Shapes: N real tokens or slots of all sequences together, H hidden size, E size of word embeddings (H but for ELECTRA).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

#: beginnings of names of weights -> other beginnings; None: second names of tied weights
Names = tuple[tuple[str, str | None], ...]


class Backbone(ABC):
    """A family of encoders. An instance holds no state; `bnb_ds.model.backbones.entries` lists them.

    Attributes:
        model_type: of its configuration, as Hugging Face's ``config.json`` has it.
        config_class: its configuration.
        encoder_class: its model without a head; `bnb_ds.model.classification.BnbEncoderModel.to_bert` makes one.
        shared_fields: of a half's configuration, those that are equal in halves which share weights.
        whole_modules: classes of modules that no tool may spread over several devices.
        checkpoint_class: the model with its LM head, which reads a checkpoint of any head.
        base: prefix of the encoder's weights in it.
        body_names: beginnings of our names of weights -> those in `encoder_class`.
        head_names: beginnings of names of the LM head's weights in `checkpoint_class` -> ours in
            `bnb_ds.model.layers.BnbLMHead`; None: second names of tied weights.
    """

    model_type: ClassVar[str]
    config_class: ClassVar[type[PreTrainedConfig]]
    encoder_class: ClassVar[type[PreTrainedModel]]
    shared_fields: ClassVar[tuple[str, ...]] = ()
    whole_modules: ClassVar[tuple[str, ...]] = ()
    checkpoint_class: ClassVar[type[PreTrainedModel]]
    base: ClassVar[str]
    body_names: ClassVar[tuple[tuple[str, str], ...]] = (("layer.", "encoder.layer."),)
    head_names: ClassVar[Names] = ()

    # ---- configuration -------------------------------------------------------------------------------------------

    def half(self, config: Any) -> PreTrainedConfig:
        """The configuration that a half keeps of a checkpoint's; the same one if the half has the family's own form.

        Raises:
            ConfigError: it has settings that are not computed here.
        """
        return config

    def first_position(self, config: Any) -> int:
        """Row of the first token in the table of positions; RoBERTa's first rows belong to padding."""
        return 0

    def positions(self, config: Any) -> int:
        """The most tokens of a sequence."""
        return config.max_position_embeddings - self.first_position(config)

    def set_positions(self, config: Any, wanted: int) -> None:
        """Let a configuration have ``wanted`` positions."""
        config.max_position_embeddings = wanted + self.first_position(config)

    def position_rows(self, config: Any) -> int:
        """Rows of the table of positions; 0: there is none."""
        return config.max_position_embeddings

    def type_rows(self, config: Any) -> int:
        """Rows of the table of token types; 0: there is none."""
        return getattr(config, "type_vocab_size", 0)

    def word_size(self, config: Any) -> int:
        """E, numbers of a word embedding."""
        return config.hidden_size

    def set_dropout(self, config: Any, values: Mapping[str, float]) -> None:
        """Set ``hidden_dropout_prob`` and ``attention_probs_dropout_prob``, under the family's names for them."""
        config.update(dict(values))

    def hidden_dropout(self, config: Any) -> float:
        """Dropout of hidden states."""
        return config.hidden_dropout_prob

    def special_ids(self, config: Any) -> dict[str, int | None]:
        """Fields of `bnb_ds.model.configuration.BnbConfig` with ids of special tokens, and their defaults.

        They serve where no tokenizer says more. The blank is the padding token.
        """
        pad = config.pad_token_id
        return {
            "blank_token_id": pad or 0,
            "pad_token_id": pad,
            "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id,
        }

    # ---- modules ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def embeddings(self, config: Any) -> nn.Module:
        """The encoder's embeddings, with an attribute ``word_embeddings``.

        They are called with ``input_ids``, ``token_type_ids`` and ``position_ids``, int64 [1, N], the positions
        counted from `first_position`; and return [1, N, H].
        """

    @abstractmethod
    def embedding_norm(self, config: Any) -> nn.Module:
        """The norm over the sum of a decoder slot's embeddings [N, E]."""

    def embedding_projection(self, config: Any) -> nn.Module | None:
        """From normed embeddings [N, E] to [N, H]; None if E is H."""
        return None

    @abstractmethod
    def layers(self, config: Any) -> Iterable[nn.Module]:
        """All layers of a half.

        A layer is called ``layer(hidden_1NH, layout=..., **context)`` in an encoder. In a decoder
        (``config.add_cross_attention``) it is called ``layer(hidden_1TH, None, memory_1NH, layout=...,
        memory_layout=..., **context)``. It returns hidden states of the same shape.
        """

    def context(self, config: Any) -> nn.Module | None:
        """What all layers share in a pass, such as rotary embeddings; None: nothing.

        The module is called with hidden states [1, N, H] and positions int64 [N] (counted from 0), and returns a
        dict: further keyword arguments of the layers.
        """
        return None

    def final_norm(self, config: Any) -> nn.Module | None:
        """The norm behind the last layer, of families that norm in front of each layer; None: there is none."""
        return None

    @abstractmethod
    def head_transform(self, config: Any) -> nn.Module:
        """The LM head in front of its matrix: from [N, H] to [N, E]."""

    # ---- cost ------------------------------------------------------------------------------------------------------

    def feed_forward_weights(self, config: Any) -> int:
        """Weights of a layer's feed-forward matrices; each costs 2 FLOPs a token."""
        return 2 * config.hidden_size * config.intermediate_size

    def attended_pairs(self, config: Any, lengths_B: np.ndarray) -> int:
        """Pairs of query and key in the self-attention of all layers together, for sequences of these lengths."""
        return config.num_hidden_layers * int((lengths_B * lengths_B).sum())

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def our_body(self, name: str) -> str:
        """Our name of a weight of `encoder_class`."""
        return _renamed(name, ((theirs, ours) for ours, theirs in self.body_names))

    def their_body(self, name: str) -> str:
        """The name in `encoder_class` of one of our weights of an encoder."""
        return _renamed(name, self.body_names)

    def extra_body(self, config: Any) -> dict[str, Tensor]:
        """Weights of a half that no checkpoint of the family has."""
        return {}

    def with_positions(self, table: Tensor, config: Any) -> Tensor:
        """The checkpoint's table of positions for a half of this configuration: cut, or repeated to its length."""
        first, wanted = self.first_position(config), self.position_rows(config)
        head, positions = table[:first], table[first:]
        repeats = -(-(wanted - first) // positions.shape[0])
        return torch.cat((head, positions.repeat(repeats, 1)))[:wanted]


def _renamed(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
