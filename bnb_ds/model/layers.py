"""Encoder, decoder and LM head, built from the modules of each half's backbone and run on unpadded tokens.

Module names inside `BnbEncoder` and `BnbDecoder` are those of a BERT checkpoint, so that its weights fit by name.
`bnb_ds.model.backbones` has what differs between families of encoders.

Shapes: N real source tokens and T decoder slots of all sequences together, L latent size, H hidden size, E size of word
embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from bnb_ds.common.packing import PackedInputs, PackedLayout
from bnb_ds.errors import ConfigError
from bnb_ds.model.backbones.entries import backbone_of
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.slots import DecoderSlots


class BnbEncoder(nn.Module):
    """A pre-trained encoder without its pooler.

    Args:
        config: the half's configuration, which chooses the backbone.
    """

    embeddings: Any  # the backbone's module, with an attribute `word_embeddings`

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        backbone = backbone_of(config)
        self.positions = backbone.positions(config)
        self._first_position = backbone.first_position(config)
        self._has_types = backbone.type_rows(config) > 1
        self.embeddings = backbone.embeddings(config)
        self.layer = nn.ModuleList(backbone.layers(config))
        self.context = backbone.context(config)
        self.final_norm = backbone.final_norm(config)

    def forward(self, inputs: PackedInputs) -> Tensor:
        """Hidden states [N, H] of the last layer.

        Raises:
            ConfigError: a sequence has more tokens than the encoder has positions.
        """
        layout, types_N = inputs.layout, inputs.token_type_ids
        if layout.max_seqlen > self.positions:
            raise ConfigError(
                f"a source has {layout.max_seqlen} tokens, but the encoder has {self.positions} positions: cut the "
                "source"
            )
        hidden_1NH = self.embeddings(
            input_ids=inputs.input_ids[None],
            token_type_ids=(types_N if self._has_types else torch.zeros_like(types_N))[None],
            position_ids=_rows(layout.position_ids, self._first_position)[None],
        )
        context = {} if self.context is None else self.context(hidden_1NH, layout.position_ids, layout)
        for layer in self.layer:
            hidden_1NH = layer(hidden_1NH, layout=layout, **context)
        return (hidden_1NH if self.final_norm is None else self.final_norm(hidden_1NH))[0]


class BnbDecoderEmbeddings(nn.Module):
    """Embeds position, token type and latent of each slot: ``LayerNorm(position + type + gelu(W z))``.

    A family without absolute positions has none here, and one with smaller word embeddings projects the result.
    Without ``decoder_latent`` the sum has no latent. With ``decoder_tokens`` the sum also has the word embedding of
    the slot's token, times a gate. Without it, the word embeddings are not used here. They are the output matrix of
    the LM head, but have BERT's name for them.
    """

    def __init__(self, config: BnbConfig):
        super().__init__()
        decoder, backbone = config.decoder, backbone_of(config.decoder)
        size, num_types = backbone.word_size(decoder), backbone.type_rows(decoder)
        self._first_position = backbone.first_position(decoder)
        # No padding_idx, because [PAD] is the CTC blank, the most frequent output, and must be trained.
        self.word_embeddings = nn.Embedding(decoder.vocab_size, size)
        self.position_embeddings = None
        if num_positions := backbone.position_rows(decoder):
            self.position_embeddings = nn.Embedding(num_positions, size)
        for embeddings in (self.word_embeddings, self.position_embeddings):
            if embeddings is not None:
                embeddings.initializer_range = config.embedding_range
        self.token_type_embeddings = nn.Embedding(num_types, size) if num_types else None
        self.latent_projection = None
        if config.decoder_latent:
            self.latent_projection = nn.Linear(config.latent_size, size)
        self.token_gate = None
        if config.decoder_tokens:
            # A new model begins with an open gate. `from_pretrained` makes models on the meta device; if its checkpoint
            # has no gate, the gate begins closed, so that the model computes what the checkpoint's model computed.
            self.starts_closed = self.word_embeddings.weight.is_meta
            self.token_gate = nn.Parameter(torch.ones(1))
        self.LayerNorm = backbone.embedding_norm(decoder)
        self.dropout = nn.Dropout(backbone.hidden_dropout(decoder))
        self.embeddings_project = backbone.embedding_projection(decoder)

    def forward(self, latent: Tensor, slots: DecoderSlots, *, is_stretched: bool = False) -> Tensor:
        """[T, H], from latents [N, L] of the source tokens, or [T, L] of the slots if ``is_stretched``."""
        parts = []
        if self.position_embeddings is not None:
            parts.append(self.position_embeddings(_rows(slots.position_ids, self._first_position)))
        if self.latent_projection is not None:
            # Latents are projected before they are copied to the slots, because there are fewer tokens than slots.
            latent_TE = F.gelu(self.latent_projection(latent))
            if not is_stretched:
                latent_TE = latent_TE.index_select(0, slots.source_index)
            parts.append(latent_TE)
        if self.token_type_embeddings is not None:
            parts.append(self.token_type_embeddings(slots.token_type_ids))
        if self.token_gate is not None:
            assert slots.token_ids is not None
            parts.append(self.token_gate * self.word_embeddings(slots.token_ids))
        embedded_TE = self.dropout(self.LayerNorm(sum(parts[1:], parts[0])))
        return embedded_TE if self.embeddings_project is None else self.embeddings_project(embedded_TE)


def _rows(position_ids: Tensor, first: int) -> Tensor:
    """Rows of the table of positions."""
    return position_ids + first if first else position_ids


class PredictionFeedback(nn.Module):
    """Joins a layer's hidden states and the words that it predicts: ``W [x ; word]``.

    W begins as [I, 0], so that a model which gets this module computes what it computed without.
    """

    def __init__(self, hidden_size: int, word_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, hidden_size + word_size))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Set W to [I, 0]."""
        self.weight.copy_(torch.eye(*self.weight.shape))

    def forward(self, hidden_TH: Tensor, words_TE: Tensor) -> Tensor:
        """[T, H]."""
        return F.linear(torch.cat((hidden_TH, words_TE), -1), self.weight)


class EarlyExit:
    """Lets slots exit at decoding: one whose prediction is sure keeps its state in all layers behind.

    Args:
        entropies: from the hidden states [T, H] of a layer to the entropies of its predictions: float [T], in nats.
        threshold: a slot leaves behind the first layer whose prediction has an entropy below this.

    Source: Li et al., ELMER, EMNLP 2022 (hard early exit).
    """

    def __init__(self, entropies: Callable[[Tensor], Tensor], threshold: float) -> None:
        self._entropies = entropies
        self._threshold = threshold
        self._kept: Tensor | None = None
        self._has_left: Tensor | None = None

    def held(self, hidden_TH: Tensor) -> Tensor:
        """The states [T, H] behind a layer: those of slots that have left are as when they left."""
        if self._has_left is None or self._kept is None:
            return hidden_TH
        return torch.where(self._has_left[:, None], self._kept, hidden_TH)

    def leave(self, hidden_TH: Tensor, normed_TH: Tensor) -> Tensor:
        """Let sure slots leave with the states that `held` returned; bool [], whether all slots have left.

        Args:
            hidden_TH: those states.
            normed_TH: what the LM head reads of them.
        """
        leaves_T = self._entropies(normed_TH) < self._threshold
        self._has_left = leaves_T if self._has_left is None else self._has_left | leaves_T
        self._kept = hidden_TH
        return self._has_left.all()


class BnbDecoder(nn.Module):
    """A backbone's layers with full self-attention among slots and cross-attention to the source.

    With ``deep_supervision``, ``feedback`` has a module behind each layer whose predictions the next one reads.
    """

    def __init__(self, config: BnbConfig):
        super().__init__()
        decoder, backbone = config.decoder, backbone_of(config.decoder)
        self.embeddings = BnbDecoderEmbeddings(config)
        self.layer = nn.ModuleList(backbone.layers(decoder))
        self.context = backbone.context(decoder)
        self.final_norm = backbone.final_norm(decoder)
        self.feedback = None
        if config.deep_supervision:
            # A layer that does not predict keeps its place, so that the names of weights say which layer they serve.
            self.feedback = nn.ModuleList(
                PredictionFeedback(decoder.hidden_size, backbone.word_size(decoder))
                if number in config.predicting_layers
                else nn.Identity()
                for number in range(decoder.num_hidden_layers - 1)
            )
        self._predicting = frozenset(config.predicting_layers)

    def forward(
        self,
        latent: Tensor,
        memory_NH: Tensor,
        slots: DecoderSlots,
        source: PackedLayout,
        predict: Callable[[Tensor], Tensor],
        *,
        is_stretched: bool = False,
        early_exit: EarlyExit | None = None,
        ends_early: bool = True,
    ) -> Tensor:
        """Hidden states [T, H] of the last layer.

        Args:
            latent: [N, L] of the source tokens, or [T, L] of the slots if ``is_stretched``.
            memory_NH: hidden states of the source, which cross-attention reads.
            slots: positions and token types of the slots.
            source: layout of the source tokens.
            predict: from the hidden states [T, H] of a layer to the tokens int64 [T] that the next one reads; called
                behind the layers of `BnbConfig.predicting_layers`.
            is_stretched: whether ``latent`` already has one row for each slot.
            early_exit: lets sure slots keep their state; None: no slot does.
            ends_early: whether layers are left out once all slots have left. The result is the same.
        """
        hidden_1TH = self.embeddings(latent, slots, is_stretched=is_stretched)[None]
        memory_1NH = memory_NH[None]
        context = {} if self.context is None else self.context(hidden_1TH, slots.position_ids, slots.layout, source)
        for number, layer in enumerate(self.layer):
            # Positional arguments, because reentrant activation checkpointing gives gradients only to those.
            hidden_1TH = layer(hidden_1TH, None, memory_1NH, layout=slots.layout, memory_layout=source, **context)
            if early_exit is not None:
                hidden_1TH = early_exit.held(hidden_1TH[0])[None]
                is_read = number in self._predicting
                if is_read and early_exit.leave(hidden_1TH[0], self._normed(hidden_1TH[0])) and ends_early:
                    break
            if self.feedback is not None and number in self._predicting:
                words_TE = self.embeddings.word_embeddings(predict(self._normed(hidden_1TH[0])))
                hidden_1TH = self.feedback[number](hidden_1TH, words_TE[None])
        return self._normed(hidden_1TH[0])

    def _normed(self, hidden_TH: Tensor) -> Tensor:
        return hidden_TH if self.final_norm is None else self.final_norm(hidden_TH)


def tie_halves(decoder: BnbDecoder, encoder: BnbEncoder) -> dict[str, str]:
    """Let the decoder's embeddings, self-attention and feed-forward layers share the encoder's parameters.

    Returns:
        The decoder's name of each shared parameter (``decoder.…``) -> the encoder's name (``encoder.…``).
    """
    shared = {}
    theirs = dict(encoder.named_parameters())
    for name, _ in list(decoder.named_parameters()):
        if name in theirs:
            owner, _, leaf = name.rpartition(".")
            setattr(decoder.get_submodule(owner), leaf, theirs[name])
            shared[f"decoder.{name}"] = f"encoder.{name}"
    return shared


class BnbLMHead(nn.Module):
    """The backbone's prediction head without its matrix, which is that of the half's word embeddings.

    Args:
        config: of the half that predicts.
        has_transform: whether there is a dense layer in front of the matrix.
    """

    def __init__(self, config: PreTrainedConfig, *, has_transform: bool = True):
        super().__init__()
        self.transform = backbone_of(config).head_transform(config) if has_transform else nn.Identity()
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_TH: Tensor) -> Tensor:
        """[T, E], the input of the projection to the vocabulary."""
        return self.transform(hidden_TH)
