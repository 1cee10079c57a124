"""BERT-NAR-BERT: a pre-trained encoder, a small latent, and a decoder that writes all target positions at once.

    source tokens -> encoder -> latent (one per token) -> decoder slots -> LM head -> CTC

Inside, all token-wise operations run on one row of real tokens (`bnb_ds.common.packing`); only attention needs to know
the sequences. Padded input is packed on entry, and outputs are padded again. ``config.decoder_length`` decides how many
slots there are, and whether CTC or length classification turns them into the target.

Shapes: B sequences; padded: L source columns, T slots of the longest decoder sequence; packed: N source tokens and
sum T slots of all sequences together; H hidden size, V vocabulary, S target tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization

from bnb_ds.common.packing import PackedInputs, PackedLayout, keep_padding, pack_inputs, types_of_pairs
from bnb_ds.errors import ConfigError
from bnb_ds.hf.forward_arguments import in_form, take_return_dict
from bnb_ds.model.attention import IMPLEMENTATION
from bnb_ds.model.backbones.entries import whole_modules
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.layers import BnbDecoder, BnbDecoderEmbeddings, BnbEncoder, PredictionFeedback, tie_halves
from bnb_ds.model.length import LengthPredictor, stretch_latents
from bnb_ds.model.outputs import BnbModelOutput
from bnb_ds.model.resizing import ResizesVocabularies
from bnb_ds.model.slots import DecoderSlots, longest_targets, open_slots
from bnb_ds.model.students.training_pass import LayerStates

#: weights of parts that a model of another configuration lacks
OPTIONAL_PARTS = (r"length_predictor\.", r"token_gate$", r"decoder\.feedback\.")
#: weights that a saved model may have and the one made of it has not: BERT's pooler, latents that no slot reads
OTHER_PARTS = (r"^pooler\.", r"latent_projection\.")


class BnbPreTrainedModel(ResizesVocabularies, PreTrainedModel):
    """Loading, saving and initialisation of all BnB models."""

    config_class = BnbConfig
    config: BnbConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_attention_backend = True
    _no_split_modules: ClassVar[list[str]] = [*whole_modules(), "BnbDecoderEmbeddings"]

    def __init__(self, config: BnbConfig, *args: Any, **kwargs: Any):
        # Only this implementation can read packed rows, so it replaces any choice of the caller or the environment.
        config._attn_implementation = IMPLEMENTATION
        config.check()  # from_pretrained may have replaced fields
        super().__init__(config, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing: a saved model comes with code of its own, not with a copy of this module."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = getattr(module, "initializer_range", None)
        if isinstance(module, (nn.Embedding, nn.Linear)) and std is not None:
            initialization.normal_(module.weight, mean=0.0, std=std)  # only once: what is initialised is marked
            if isinstance(module, nn.Linear) and module.bias is not None:
                initialization.zeros_(module.bias)
            return
        super()._init_weights(module)
        # No checkpoint holds buffers, so a model made on the meta device gets them here.
        for name, values in dict(module.named_buffers(recurse=False)).items():
            if name == "position_ids":
                values.copy_(torch.arange(values.shape[-1])[None])
            if name == "token_type_ids":
                values.zero_()
        reset_buffers: Any = getattr(module, "reset_buffers", None)  # of a backbone's context
        if reset_buffers is not None:
            reset_buffers()
        if isinstance(module, LengthPredictor) and module.log_width is not None:
            module.log_width.zero_()
        if isinstance(module, BnbDecoderEmbeddings) and module.token_gate is not None:
            module.token_gate.fill_(0.0 if module.starts_closed else 1.0)
        if isinstance(module, PredictionFeedback):
            module.reset()


class BnbModelWithEncoder(BnbPreTrainedModel):
    """A model whose inputs are embedded by ``self.encoder``."""

    encoder: BnbEncoder

    def get_input_embeddings(self) -> nn.Embedding:
        """The encoder's word embeddings."""
        return self.encoder.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the encoder's word embeddings."""
        self.encoder.embeddings.word_embeddings = value


@dataclass(frozen=True, eq=False)
class Encoded:
    """A batch of encoded sources: everything that the decoder needs.

    Attributes:
        layout: layout of the source tokens.
        tokens: int64 [N], the source tokens.
        token_types: int64 [N].
        hidden: [N, H], hidden states of the encoder; [N, 0] without a decoder, where the encoder reads the slots.
        latent: [N, latent_size]; [N, 0] without a decoder.
        length_logits: [B, C] of `bnb_ds.model.length.LengthPredictor`; None without length classification.
    """

    layout: PackedLayout
    tokens: Tensor
    token_types: Tensor
    hidden: Tensor
    latent: Tensor
    length_logits: Tensor | None

    def at(self, layout: PackedLayout, index: Tensor) -> Encoded:
        """Sources made of these tokens, without length logits.

        Args:
            layout: of the new sources.
            index: int64, the place of each of their tokens in this batch.
        """
        return Encoded(
            layout,
            self.tokens.index_select(0, index),
            self.token_types.index_select(0, index),
            self.hidden.index_select(0, index),
            self.latent.index_select(0, index),
            None,
        )


class BnbModel(BnbModelWithEncoder):
    """Encoder, latent and decoder, without the LM head. Without ``has_decoder`` the encoder is all there is."""

    # A model saved by `BnbLMHeadModel` has a head, which is ignored here.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        r"^lm_head\.",
        r"^links\.",
        *OTHER_PARTS,
        *OPTIONAL_PARTS,
    ]

    def __init__(self, config: BnbConfig):
        super().__init__(config)
        self.encoder = BnbEncoder(config.encoder)
        self.latent: nn.Linear | None = None
        self.length_predictor: LengthPredictor | None = None
        self.enc_to_dec_proj: nn.Linear | None = None
        self.decoder: BnbDecoder | None = None
        if config.has_decoder:
            self._add_decoder(config)
        self.post_init()

    def _add_decoder(self, config: BnbConfig) -> None:
        self.latent = nn.Linear(config.encoder.hidden_size, config.latent_size)
        self.latent_dropout = nn.Dropout(config.latent_dropout)
        self.length_predictor = LengthPredictor(config) if config.decoder_length == "predicted" else None
        if config.encoder.hidden_size != config.decoder.hidden_size:
            self.enc_to_dec_proj = nn.Linear(config.encoder.hidden_size, config.decoder.hidden_size)
        self.decoder = BnbDecoder(config)
        if config.tie_encoder_decoder:
            self._tied_weights_keys = tie_halves(self.decoder, self.encoder)

    @property
    def writer(self) -> Any:
        """The half whose states are the slots' and whose word embeddings are the output matrix."""
        return self.encoder if self.decoder is None else self.decoder

    def pack(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        host_lengths: np.ndarray | None = None,
    ) -> PackedInputs:
        """Model inputs in the form that `encode` takes. Arguments are those of `BnbLMHeadModel.forward`, and
        ``host_lengths`` is that of `bnb_ds.common.packing.pack_inputs`.

        Raises:
            ValueError: as `bnb_ds.common.packing.pack_inputs` says.
            ConfigError: the input is packed, but ``decoder_length`` is ``"padded"``.
        """
        if self.config.decoder_length != "padded":
            return pack_inputs(input_ids, attention_mask, token_type_ids, cu_seqlens, max_seqlen, host_lengths)
        if cu_seqlens is not None:
            raise ConfigError(
                "decoder_length 'padded' decodes padding, but packed input has none: give padded input_ids, or load "
                "the model with decoder_length='source'"
            )
        return keep_padding(input_ids, attention_mask, token_type_ids)

    def encode(self, inputs: PackedInputs, kept: LayerStates | None = None) -> Encoded:
        """Encode the sources. ``kept`` takes up the outputs of the layers."""
        if self.config.pair_separator_id is not None:
            inputs = replace(inputs, token_type_ids=types_of_pairs(inputs, self.config.pair_separator_id))
        if self.latent is None:
            nothing = self.get_input_embeddings().weight.new_zeros(inputs.layout.num_tokens, 0)
            return Encoded(inputs.layout, inputs.input_ids, inputs.token_type_ids, nothing, nothing, None)
        hidden_NH = self.encoder(inputs, kept)
        latent_NL = self.latent(hidden_NH)
        length_logits_BC = None
        if self.length_predictor is not None:
            length_logits_BC = self.length_predictor(latent_NL, inputs.layout)
        return Encoded(inputs.layout, inputs.input_ids, inputs.token_type_ids, hidden_NH, latent_NL, length_logits_BC)

    def decode(
        self,
        encoded: Encoded,
        slots: DecoderSlots,
        predict: Callable[[Tensor], Tensor],
        kept: LayerStates | None = None,
        **exits: Any,
    ) -> Tensor:
        """Hidden states [sum T, H] of all slots. `BnbDecoder.forward` describes ``predict`` and ``exits``; ``kept``
        takes up the outputs of the layers."""
        if self.decoder is None:
            assert slots.token_ids is not None  # the configuration's check says so
            types_T = encoded.token_types.index_select(0, slots.source_index)
            return self.encoder(PackedInputs(slots.token_ids, types_T, slots.layout), kept)
        latent = self.latent_dropout(encoded.latent)
        is_stretched = self.length_predictor is not None
        if self.length_predictor is not None and self.config.decoder_latent:
            latent = stretch_latents(latent, encoded.layout, slots.layout, self.length_predictor.width)
        memory_NH = encoded.hidden if self.enc_to_dec_proj is None else self.enc_to_dec_proj(encoded.hidden)
        memory_NH = self.latent_dropout(memory_NH)
        if kept is not None:
            exits["kept"] = kept
        return self.decoder(latent, memory_NH, slots, encoded.layout, predict, is_stretched=is_stretched, **exits)

    def open(self, encoded: Encoded, target_lengths: Tensor | np.ndarray | None = None) -> DecoderSlots:
        """The slots of each source; with length classification those of the predicted length, if none is given."""
        if self.length_predictor is not None and target_lengths is None:
            target_lengths = self.predicted_lengths(encoded)[:, 0]
        return open_slots(encoded.layout, self.config, target_lengths, encoded.tokens)

    def predicted_lengths(self, encoded: Encoded, num_candidates: int = 1) -> Tensor:
        """int64 [B, K], the most probable target lengths, best first."""
        assert self.length_predictor is not None
        assert encoded.length_logits is not None
        longest, lengths_B = longest_targets(self.config), encoded.layout.lengths
        return self.length_predictor.best(encoded.length_logits, lengths_B, num_candidates, longest=longest)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        target_lengths: Tensor | None = None,
        **options: Any,
    ) -> BnbModelOutput:
        """Encode the sources and decode all slots. The other arguments are those of `BnbLMHeadModel.forward`.

        Args:
            target_lengths: int64 [B], target tokens with length classification; None: the most probable lengths.
            options: ``return_dict`` (False: return a tuple), and arguments of other models, which may be None.

        Raises:
            ConfigError: an argument of other models has a value, or is unknown.
        """
        returns_dict = take_return_dict(options, last=True)
        inputs = self.pack(input_ids, attention_mask, token_type_ids, cu_seqlens, max_seqlen)
        output = self.run(inputs, target_lengths)
        if not inputs.is_packed:
            output["last_hidden_state"] = output.decoder_layout.pad(output.last_hidden_state)
            output["latent"] = inputs.restore(output.latent)
            output["encoder_last_hidden_state"] = inputs.restore(output.encoder_last_hidden_state)
        return in_form(output, returns_dict)

    def run(self, inputs: PackedInputs, target_lengths: Tensor | None = None) -> BnbModelOutput:
        """`forward` on inputs from `pack`. All outputs stay packed.

        Raises:
            ConfigError: the decoder's layers read predictions, for which this model has no head.
        """
        encoded = self.encode(inputs)
        slots = self.open(encoded, target_lengths)
        return BnbModelOutput(
            last_hidden_state=self.decode(encoded, slots, _no_head),
            latent=encoded.latent,
            length_logits=encoded.length_logits,
            encoder_last_hidden_state=encoded.hidden,
            decoder_lengths=slots.layout.lengths,
            decoder_layout=slots.layout,
        )


def _no_head(hidden_TH: Tensor) -> Tensor:
    raise ConfigError(
        "deep_supervision: the decoder's layers read predictions, and BnbModel has no LM head for them; load the model "
        "as BnbForConditionalGeneration"
    )
