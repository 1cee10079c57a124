"""Encoder, decoder and LM head, built from Hugging Face's BERT modules and run on unpadded tokens.

Module names inside `BnbEncoder` and `BnbDecoder` are those of a BERT checkpoint, so that its weights fit by name.

Shapes: N real source tokens and T decoder slots of all sequences together, L latent size, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer, BertPredictionHeadTransform

from bnb_ds.common.packing import PackedInputs, PackedLayout
from bnb_ds.errors import ConfigError
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.slots import DecoderSlots


class BnbEncoder(nn.Module):
    """BERT without its pooler."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.max_position_embeddings = config.max_position_embeddings
        self.embeddings = BertEmbeddings(config)
        self.layer = nn.ModuleList(BertLayer(config, layer_idx=i) for i in range(config.num_hidden_layers))

    def forward(self, inputs: PackedInputs) -> Tensor:
        """Hidden states [N, H] of the last layer.

        Raises:
            ConfigError: a sequence has more tokens than there are position embeddings.
        """
        layout = inputs.layout
        if layout.max_seqlen > self.max_position_embeddings:
            raise ConfigError(
                f"a source has {layout.max_seqlen} tokens, but encoder.max_position_embeddings is "
                f"{self.max_position_embeddings}: cut the source"
            )
        hidden_1NH = self.embeddings(
            input_ids=inputs.input_ids[None],
            token_type_ids=inputs.token_type_ids[None],
            position_ids=layout.position_ids[None],
        )
        for layer in self.layer:
            hidden_1NH = layer(hidden_1NH, layout=layout)
        return hidden_1NH[0]


class BnbDecoderEmbeddings(nn.Module):
    """Embeds position, token type and latent of each slot: ``LayerNorm(position + type + gelu(W z))``.

    Without ``decoder_latent`` the sum has no latent. With ``decoder_tokens`` the sum also has the word embedding of
    the slot's token, times a gate. Without it, the word embeddings are not used here. They are the output matrix of
    the LM head, but have BERT's name for them.
    """

    def __init__(self, config: BnbConfig):
        super().__init__()
        decoder = config.decoder
        # No padding_idx, because [PAD] is the CTC blank, the most frequent output, and must be trained.
        self.word_embeddings = nn.Embedding(decoder.vocab_size, decoder.hidden_size)
        self.position_embeddings = nn.Embedding(decoder.max_position_embeddings, decoder.hidden_size)
        for embeddings in (self.word_embeddings, self.position_embeddings):
            embeddings.initializer_range = config.embedding_range
        self.token_type_embeddings = nn.Embedding(decoder.type_vocab_size, decoder.hidden_size)
        self.latent_projection = None
        if config.decoder_latent:
            self.latent_projection = nn.Linear(config.latent_size, decoder.hidden_size)
        self.token_gate = None
        if config.decoder_tokens:
            # A new model begins with an open gate. `from_pretrained` makes models on the meta device; if its checkpoint
            # has no gate, the gate begins closed, so that the model computes what the checkpoint's model computed.
            self.starts_closed = self.word_embeddings.weight.is_meta
            self.token_gate = nn.Parameter(torch.ones(1))
        self.LayerNorm = nn.LayerNorm(decoder.hidden_size, eps=decoder.layer_norm_eps)
        self.dropout = nn.Dropout(decoder.hidden_dropout_prob)

    def forward(self, latent: Tensor, slots: DecoderSlots, *, is_stretched: bool = False) -> Tensor:
        """[T, H], from latents [N, L] of the source tokens, or [T, L] of the slots if ``is_stretched``."""
        hidden_TH = self.position_embeddings(slots.position_ids)
        if self.latent_projection is not None:
            # Latents are projected before they are copied to the slots, because there are fewer tokens than slots.
            latent_TH = F.gelu(self.latent_projection(latent))
            if not is_stretched:
                latent_TH = latent_TH.index_select(0, slots.source_index)
            hidden_TH = latent_TH + hidden_TH
        hidden_TH = hidden_TH + self.token_type_embeddings(slots.token_type_ids)
        if self.token_gate is not None:
            assert slots.token_ids is not None
            hidden_TH = hidden_TH + self.token_gate * self.word_embeddings(slots.token_ids)
        return self.dropout(self.LayerNorm(hidden_TH))


class PredictionFeedback(nn.Module):
    """Joins a layer's hidden states and the words that it predicts: ``W [x ; word]``.

    W begins as [I, 0], so that a model which gets this module computes what it computed without.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, 2 * hidden_size))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Set W to [I, 0]."""
        self.weight.copy_(torch.eye(*self.weight.shape))

    def forward(self, hidden_TH: Tensor, words_TH: Tensor) -> Tensor:
        """[T, H]."""
        return F.linear(torch.cat((hidden_TH, words_TH), -1), self.weight)


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

    def leave(self, hidden_TH: Tensor) -> Tensor:
        """Let sure slots leave with the states that `held` returned; bool [], whether all slots have left."""
        leaves_T = self._entropies(hidden_TH) < self._threshold
        self._has_left = leaves_T if self._has_left is None else self._has_left | leaves_T
        self._kept = hidden_TH
        return self._has_left.all()


class BnbDecoder(nn.Module):
    """BERT layers with full self-attention among slots and cross-attention to the source.

    With ``deep_supervision``, ``feedback`` has a module behind each layer whose predictions the next one reads.
    """

    def __init__(self, config: BnbConfig):
        super().__init__()
        decoder = config.decoder
        self.embeddings = BnbDecoderEmbeddings(config)
        self.layer = nn.ModuleList(BertLayer(decoder, layer_idx=i) for i in range(decoder.num_hidden_layers))
        self.feedback = None
        if config.deep_supervision:
            # A layer that does not predict keeps its place, so that the names of weights say which layer they serve.
            self.feedback = nn.ModuleList(
                PredictionFeedback(decoder.hidden_size) if number in config.predicting_layers else nn.Identity()
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
        for number, layer in enumerate(self.layer):
            # Positional arguments, because reentrant activation checkpointing gives gradients only to those.
            hidden_1TH = layer(hidden_1TH, None, memory_1NH, layout=slots.layout, memory_layout=source)
            if early_exit is not None:
                hidden_1TH = early_exit.held(hidden_1TH[0])[None]
                if number in self._predicting and early_exit.leave(hidden_1TH[0]) and ends_early:
                    break
            if self.feedback is not None and number in self._predicting:
                words_TH = self.embeddings.word_embeddings(predict(hidden_1TH[0]))
                hidden_1TH = self.feedback[number](hidden_1TH, words_TH[None])
        return hidden_1TH[0]


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
    """BERT's prediction head without its matrix, which is that of the decoder's word embeddings.

    Args:
        config: of the half that predicts.
        has_transform: whether there is a dense layer in front of the matrix.
    """

    def __init__(self, config: BertConfig, *, has_transform: bool = True):
        super().__init__()
        self.transform = BertPredictionHeadTransform(config) if has_transform else nn.Identity()
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_TH: Tensor) -> Tensor:
        """[T, H], the input of the projection to the vocabulary."""
        return self.transform(hidden_TH)
