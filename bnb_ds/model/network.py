"""BERT-NAR-BERT: a BERT encoder, a small latent, and a BERT decoder that writes all target positions at once.

    source tokens -> encoder -> latent (one per token) -> decoder slots -> LM head -> CTC

Inside, all token-wise operations run on one row of real tokens (`bnb_ds.common.packing`); only attention needs to know
the sequences. Padded input is packed on entry, and outputs are padded again. ``config.decoder_length`` decides how many
slots there are, and whether CTC or length classification turns them into the target.

Shapes: B sequences; padded: L source columns, T slots of the longest decoder sequence; packed: N source tokens and
sum T slots of all sequences together; H hidden size, V vocabulary, S target tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import BertEmbeddings

from bnb_ds.common.packing import PackedInputs, PackedLayout, keep_padding, pack_inputs
from bnb_ds.ctc.greedy import linear_argmax
from bnb_ds.errors import ConfigError
from bnb_ds.model.attention import IMPLEMENTATION
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.layers import BnbDecoder, BnbEncoder, BnbLMHead, tie_halves
from bnb_ds.model.length import LengthPredictor, stretch_latents
from bnb_ds.model.outputs import BnbModelOutput, BnbOutput
from bnb_ds.model.slots import DecoderSlots, open_slots
from bnb_ds.model.target_loss import Targets, ctc_scores, length_scores, read_targets, token_scores


class BnbPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation of all BnB models."""

    config_class = BnbConfig
    config: BnbConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_attention_backend = True
    _no_split_modules: ClassVar[list[str]] = ["BertEmbeddings", "BnbDecoderEmbeddings", "BertLayer"]

    def __init__(self, config: BnbConfig, *args: Any, **kwargs: Any):
        # Only this implementation can read packed rows, so it replaces any choice of the caller or the environment.
        config._attn_implementation = IMPLEMENTATION
        config.check()  # from_pretrained may have replaced fields
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BertEmbeddings):
            # No checkpoint holds these buffers, so a model made on the meta device gets them here.
            module.position_ids.copy_(torch.arange(module.position_ids.shape[-1])[None])
            module.token_type_ids.zero_()
        if isinstance(module, LengthPredictor):
            module.log_width.zero_()


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
        hidden: [N, H], hidden states of the encoder.
        latent: [N, latent_size].
        length_logits: [B, C] of `bnb_ds.model.length.LengthPredictor`; None without length classification.
    """

    layout: PackedLayout
    hidden: Tensor
    latent: Tensor
    length_logits: Tensor | None


class BnbModel(BnbModelWithEncoder):
    """Encoder, latent and decoder, without the LM head."""

    # A model saved by `BnbLMHeadModel` has a head, which is ignored here.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^lm_head\.", r"length_predictor\."]

    def __init__(self, config: BnbConfig):
        super().__init__(config)
        self.encoder = BnbEncoder(config.encoder)
        self.latent = nn.Linear(config.encoder.hidden_size, config.latent_size)
        self.latent_dropout = nn.Dropout(config.latent_dropout)
        self.length_predictor = LengthPredictor(config) if config.decoder_length == "predicted" else None
        self.enc_to_dec_proj = None
        if config.encoder.hidden_size != config.decoder.hidden_size:
            self.enc_to_dec_proj = nn.Linear(config.encoder.hidden_size, config.decoder.hidden_size)
        self.decoder = BnbDecoder(config)
        if config.tie_encoder_decoder:
            self._tied_weights_keys = tie_halves(self.decoder, self.encoder)
        self.post_init()

    def pack(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> PackedInputs:
        """Model inputs in the form that `encode` takes. Arguments are those of `BnbLMHeadModel.forward`.

        Raises:
            ValueError: as `bnb_ds.common.packing.pack_inputs` says.
            ConfigError: the input is packed, but ``decoder_length`` is ``"padded"``.
        """
        if self.config.decoder_length != "padded":
            return pack_inputs(input_ids, attention_mask, token_type_ids, cu_seqlens, max_seqlen)
        if cu_seqlens is not None:
            raise ConfigError(
                "decoder_length 'padded' decodes padding, but packed input has none: give padded input_ids, or load "
                "the model with decoder_length='source'"
            )
        return keep_padding(input_ids, attention_mask, token_type_ids)

    def encode(self, inputs: PackedInputs) -> Encoded:
        """Encode the sources."""
        hidden_NH = self.encoder(inputs)
        latent_NL = self.latent(hidden_NH)
        length_logits_BC = None
        if self.length_predictor is not None:
            length_logits_BC = self.length_predictor(latent_NL, inputs.layout)
        return Encoded(inputs.layout, hidden_NH, latent_NL, length_logits_BC)

    def decode(self, encoded: Encoded, slots: DecoderSlots) -> Tensor:
        """Hidden states [sum T, H] of all slots."""
        latent = self.latent_dropout(encoded.latent)
        is_stretched = self.length_predictor is not None
        if self.length_predictor is not None:
            latent = stretch_latents(latent, encoded.layout, slots.layout, self.length_predictor.log_width.exp())
        memory_NH = encoded.hidden if self.enc_to_dec_proj is None else self.enc_to_dec_proj(encoded.hidden)
        return self.decoder(latent, self.latent_dropout(memory_NH), slots, encoded.layout, is_stretched=is_stretched)

    def predicted_lengths(self, encoded: Encoded, num_candidates: int = 1) -> Tensor:
        """int64 [B, K], the most probable target lengths, best first."""
        assert self.length_predictor is not None
        assert encoded.length_logits is not None
        return self.length_predictor.best(encoded.length_logits, encoded.layout.lengths, num_candidates)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        target_lengths: Tensor | None = None,
    ) -> BnbModelOutput:
        """Encode the sources and decode all slots. The other arguments are those of `BnbLMHeadModel.forward`.

        Args:
            target_lengths: int64 [B], numbers of slots with length classification; None: the most probable lengths.
        """
        inputs = self.pack(input_ids, attention_mask, token_type_ids, cu_seqlens, max_seqlen)
        output = self.run(inputs, target_lengths)
        if not inputs.is_packed:
            output["last_hidden_state"] = output.decoder_layout.pad(output.last_hidden_state)
            output["latent"] = inputs.restore(output.latent)
            output["encoder_last_hidden_state"] = inputs.restore(output.encoder_last_hidden_state)
        return output

    def run(self, inputs: PackedInputs, target_lengths: Tensor | None = None) -> BnbModelOutput:
        """`forward` on inputs from `pack`. All outputs stay packed."""
        encoded = self.encode(inputs)
        if self.length_predictor is not None and target_lengths is None:
            target_lengths = self.predicted_lengths(encoded)[:, 0]
        slots = open_slots(inputs.layout, self.config, target_lengths)
        return BnbModelOutput(
            last_hidden_state=self.decode(encoded, slots),
            latent=encoded.latent,
            length_logits=encoded.length_logits,
            encoder_last_hidden_state=encoded.hidden,
            decoder_lengths=slots.layout.lengths,
            decoder_layout=slots.layout,
        )


class BnbLMHeadModel(BnbPreTrainedModel):
    """BERT-NAR-BERT with its LM head and its loss: CTC, or with length classification the cross-entropy of each slot.

    The output matrix is the parameter ``model.decoder.embeddings.word_embeddings.weight`` itself.
    """

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"length_predictor\."]

    def __init__(self, config: BnbConfig):
        super().__init__(config)
        self.model = BnbModel(config)
        self.lm_head = BnbLMHead(config.decoder)
        self.post_init()

    def get_output_embeddings(self) -> nn.Embedding:
        """The decoder's word embeddings, which are the output matrix."""
        return self.model.decoder.embeddings.word_embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        label_lengths: Tensor | None = None,
        max_label_length: int | None = None,
        return_logits: bool | None = None,
        return_best: bool = False,
    ) -> BnbOutput:
        """Predict all target positions at once, and compute the loss of ``labels``.

        Args:
            input_ids: int64 [B, L], or packed [N] with ``cu_seqlens``. A token's position is its index among the real
                tokens of its sequence.
            attention_mask: [B, L], not 0 at real tokens, which may be anywhere in a row; None: all tokens are real.
                Only for padded input.
            token_type_ids: int64, same shape as ``input_ids``; None: all 0.
            labels: int64 [B, S] with -100 at places without a target, or the targets concatenated [sum S] with
                ``label_lengths``.
            cu_seqlens: int32 [B+1], starts of the packed sequences, then N.
            max_seqlen: tokens of the longest sequence; optional. With it the host does not wait for a GPU.
            label_lengths: int64 [B], with concatenated labels.
            max_label_length: tokens of the longest target; optional. With it the host does not wait for a GPU, and
                labels and their lengths on a GPU are not checked. On a CPU everything is checked.
            return_logits: True: return logits beside the loss, which costs a second projection. None: return logits
                only without labels.
            return_best: return the best token of each slot too. This does not hold the logits of all slots.

        Raises:
            ValueError: shapes or lengths that do not fit together, or labels outside the vocabulary; with length
                classification, an empty target.
            ConfigError: a source or its decoder slots do not fit the position embeddings; or the input is packed, but
                ``decoder_length`` is ``"padded"``.
        """
        targets = None if labels is None else read_targets(labels, label_lengths, max_label_length)
        inputs = self.model.pack(input_ids, attention_mask, token_type_ids, cu_seqlens, max_seqlen)
        target_lengths = None if targets is None else targets.lengths
        outputs = self.model.run(inputs, target_lengths)
        hidden_TH = self.lm_head(outputs.last_hidden_state)
        layout = outputs.decoder_layout
        result = BnbOutput(
            latent=inputs.restore(outputs.latent),
            decoder_lengths=outputs.decoder_lengths,
            encoder_last_hidden_state=inputs.restore(outputs.encoder_last_hidden_state),
        )
        if targets is not None:
            self._score(result, hidden_TH, outputs, inputs.layout, targets)
        if return_logits or (targets is None and return_logits is None):
            logits_TV = F.linear(hidden_TH, self.get_output_embeddings().weight, self.lm_head.bias)
            result["logits"] = logits_TV if inputs.is_packed else layout.pad(logits_TV)
        if return_best:
            best_T = linear_argmax(hidden_TH, self.get_output_embeddings().weight, self.lm_head.bias)
            result["best"] = best_T if inputs.is_packed else layout.pad(best_T)
        return result

    def _score(
        self, result: BnbOutput, hidden_TH: Tensor, outputs: BnbModelOutput, source: PackedLayout, targets: Targets
    ) -> None:
        head, bias, config = self.get_output_embeddings(), self.lm_head.bias, self.config
        if self.model.length_predictor is None:
            loss_sum, count, ctc = ctc_scores(hidden_TH, head, bias, outputs.decoder_layout, targets, config)
            result["num_infeasible"] = ctc.infeasible.sum()
        else:
            loss_sum, count, ctc = token_scores(hidden_TH, head, bias, targets, config)
            length_sum, result["length_loss"] = length_scores(
                self.model.length_predictor, outputs.length_logits, source.lengths, targets, config.length_loss_weight
            )
            loss_sum = loss_sum + length_sum
            result["num_infeasible"] = count.new_zeros(())
        result["loss_sum"], result["loss_count"], result["kl"] = loss_sum, count, ctc.kl
        result["loss"] = loss_sum / count.clamp(min=1)
