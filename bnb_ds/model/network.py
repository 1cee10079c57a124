"""BERT-NAR-BERT: a BERT encoder, a small latent, and a BERT decoder that writes all target positions at once.

    source tokens -> encoder -> latent (one per token) -> decoder slots -> LM head -> CTC

Inside, all token-wise operations run on one row of real tokens (`bnb_ds.common.packing`); only attention needs to know
the sequences. Padded input is packed on entry, and outputs are padded again. ``config.decoder_length`` decides how many
slots there are, and whether CTC or length classification turns them into the target.

Shapes: B sequences; padded: L source columns, T slots of the longest decoder sequence; packed: N source tokens and
sum T slots of all sequences together; H hidden size, V vocabulary, S target tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import BertEmbeddings

from bnb_ds.common.packing import PackedInputs, PackedLayout, keep_padding, pack_inputs
from bnb_ds.ctc.greedy import linear_argmax
from bnb_ds.dag.links import LinkNetwork
from bnb_ds.errors import ConfigError
from bnb_ds.model.attention import IMPLEMENTATION
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.layers import BnbDecoder, BnbDecoderEmbeddings, BnbEncoder, BnbLMHead, tie_halves
from bnb_ds.model.length import LengthPredictor, stretch_latents
from bnb_ds.model.outputs import BnbModelOutput, BnbOutput
from bnb_ds.model.resizing import ResizesVocabularies
from bnb_ds.model.slots import DecoderSlots, distinct_slots, longest_targets, open_slots
from bnb_ds.model.target_loss import length_scores, target_of
from bnb_ds.targets.glancing import same_dropout
from bnb_ds.targets.interface import ReadOptions, Scores, SlotStates, Targets, read_targets

#: weights of parts that a model of another configuration lacks
OPTIONAL_PARTS = (r"length_predictor\.", r"token_gate$")


class BnbPreTrainedModel(ResizesVocabularies, PreTrainedModel):
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
        if isinstance(module, BnbDecoderEmbeddings) and module.token_gate is not None:
            module.token_gate.fill_(0.0 if module.starts_closed else 1.0)


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
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^lm_head\.", r"^links\.", *OPTIONAL_PARTS]

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
            latent = stretch_latents(latent, encoded.layout, slots.layout, self.length_predictor.width)
        memory_NH = encoded.hidden if self.enc_to_dec_proj is None else self.enc_to_dec_proj(encoded.hidden)
        return self.decoder(latent, self.latent_dropout(memory_NH), slots, encoded.layout, is_stretched=is_stretched)

    def open(self, encoded: Encoded, target_lengths: Tensor | None = None) -> DecoderSlots:
        """The slots of each source; with length classification those of the predicted length, if none is given."""
        if self.length_predictor is not None and target_lengths is None:
            target_lengths = self.predicted_lengths(encoded)[:, 0]
        return open_slots(encoded.layout, self.config, target_lengths)

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
    ) -> BnbModelOutput:
        """Encode the sources and decode all slots. The other arguments are those of `BnbLMHeadModel.forward`.

        Args:
            target_lengths: int64 [B], target tokens with length classification; None: the most probable lengths.
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
        slots = self.open(encoded, target_lengths)
        return BnbModelOutput(
            last_hidden_state=self.decode(encoded, slots),
            latent=encoded.latent,
            length_logits=encoded.length_logits,
            encoder_last_hidden_state=encoded.hidden,
            decoder_lengths=slots.layout.lengths,
            decoder_layout=slots.layout,
        )


class BnbLMHeadModel(BnbPreTrainedModel):
    """BERT-NAR-BERT with its LM head and its loss, that of the target which reads the slots (`bnb_ds.targets`).

    The output matrix is the parameter ``model.decoder.embeddings.word_embeddings.weight`` itself.
    """

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^links\.", *OPTIONAL_PARTS]

    def __init__(self, config: BnbConfig):
        super().__init__(config)
        self.model = BnbModel(config)
        self.lm_head = BnbLMHead(config.decoder)
        self.target = target_of(config)
        self.links = None
        if config.target_kind == "dag":
            decoder = config.decoder
            heads = config.link_heads or decoder.num_attention_heads
            self.links = LinkNetwork(decoder.hidden_size, heads, config.link_positions, decoder.initializer_range)
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
        glance_ratio: float | None = None,
        glance_draws: Tensor | None = None,
        ngram_size: int | None = None,
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
            return_best: return ``best`` of `BnbOutput` too. This does not hold the logits of all slots.
            glance_ratio: in training, with labels: the ratio of glancing (`bnb_ds.targets.glancing`); None: none.
            glance_draws: float32 [sum T], in [0, 1), a draw for each slot; with ``glance_ratio``.
            ngram_size: the loss of a sequence is 1 minus its matches of n-grams of this size; None: its nats.

        Raises:
            ValueError: shapes or lengths that do not fit together, or labels outside the vocabulary; with length
                classification, an empty target.
            ConfigError: a source or its decoder slots do not fit the position embeddings; or the input is packed, but
                ``decoder_length`` is ``"padded"``.
        """
        targets = None if labels is None else read_targets(labels, label_lengths, max_label_length)
        inputs = self.model.pack(input_ids, attention_mask, token_type_ids, cu_seqlens, max_seqlen)
        encoded = self.model.encode(inputs)
        slots = self.model.open(encoded, None if targets is None else targets.lengths)
        given_T = None
        if glance_ratio is not None and targets is not None and self.training:
            assert glance_draws is not None, "glance_ratio comes with draws"
            slots, given_T = self._glance(encoded, slots, targets, glance_ratio, glance_draws)
        states = self.states(encoded, slots)
        result = BnbOutput(
            latent=inputs.restore(encoded.latent),
            decoder_lengths=slots.layout.lengths,
            encoder_last_hidden_state=inputs.restore(encoded.hidden),
        )
        if targets is not None:
            if ngram_size is None:
                self._add_scores(result, self.target.scores(states, targets, given_T), encoded, targets)
            else:
                self._add_scores(result, self.target.ngram_scores(states, targets, ngram_size), encoded, targets)
        if return_logits or (targets is None and return_logits is None):
            logits_TV = F.linear(states.hidden, states.weight, states.bias)
            result["logits"] = logits_TV if inputs.is_packed else slots.layout.pad(logits_TV)
        if return_best:
            best_T = self._best(states)
            result["best"] = best_T if inputs.is_packed else slots.layout.pad(best_T)
        return result

    def states(self, encoded: Encoded, slots: DecoderSlots) -> SlotStates:
        """Decode slots, up to the projection to the vocabulary."""
        hidden_TH = self.lm_head(self.model.decode(encoded, slots))
        links_BTT = None if self.links is None else self.links(hidden_TH, slots.layout)
        weight_VH = self.get_output_embeddings().weight
        distinct_B = distinct_slots(slots.layout.lengths, encoded.layout.lengths, self.config)
        return SlotStates(hidden_TH, weight_VH, self.lm_head.bias, slots.layout, links_BTT, distinct_B)

    def _best(self, states: SlotStates) -> Tensor:
        if self.links is None:
            return linear_argmax(states.hidden, states.weight, states.bias)
        ids_BT, _ = self.target.decode(states, ReadOptions(pad=-1))
        return states.layout.unpad(ids_BT)

    def _glance(
        self, encoded: Encoded, slots: DecoderSlots, targets: Targets, ratio: float, draws_T: Tensor
    ) -> tuple[DecoderSlots, Tensor]:
        """The slots with the target tokens that they may see, and bool [sum T], True at these slots."""
        assert slots.token_ids is not None, "glancing needs decoder_tokens"
        with torch.no_grad(), same_dropout(encoded.hidden.device):
            states = self.states(encoded, slots)
            oracle_T = self.target.align(states, targets)
            given_T = self.target.glanced(states, targets, oracle_T, ratio, draws_T)
            tokens_T = torch.where(given_T, targets.at(oracle_T, slots.layout), slots.token_ids)
        return replace(slots, token_ids=tokens_T), given_T

    def _add_scores(self, result: BnbOutput, scores: Scores, encoded: Encoded, targets: Targets) -> None:
        loss_sum, count = scores.loss_sum, scores.count
        if self.model.length_predictor is not None:
            length_sum, result["length_loss"] = length_scores(
                self.model.length_predictor,
                encoded.length_logits,
                encoded.layout.lengths,
                targets,
                scores.weights,
            )
            loss_sum = loss_sum + self.config.length_loss_weight * length_sum
        result["loss_sum"], result["loss_count"], result["kl"] = loss_sum, count, scores.kl
        result["num_infeasible"] = scores.num_infeasible
        result["loss"] = loss_sum / count.clamp(min=1)
