"""BERT-NAR-BERT: a BERT encoder, a small latent, and a BERT decoder that writes all target positions at once.

    source tokens -> encoder -> latent (one per token) -> decoder slots -> LM head -> CTC

Inside, everything token-wise runs on one row of real tokens (`bnb_ds.packing`); attention alone knows sequences.
Padded input is packed on entry and what is returned is padded again.

Shapes: B sequences; padded: L source columns, T slots of the longest decoder sequence; packed: N source tokens and
sum T slots of all sequences together; H hidden size, V vocabulary, S target tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import ModelOutput
from transformers.models.bert.modeling_bert import BertEmbeddings

from bnb_ds.attention import IMPLEMENTATION
from bnb_ds.bert_init import initialise_from_bert
from bnb_ds.configuration import BnbConfig
from bnb_ds.ctc import linear_ctc_loss
from bnb_ds.decoding import generate
from bnb_ds.layers import BnbDecoder, BnbEncoder, BnbLMHead
from bnb_ds.packing import PackedInputs, PackedLayout, pack_inputs
from bnb_ds.slots import decoder_lengths, open_slots

__all__ = ["BnbConfig", "BnbForConditionalGeneration", "BnbModel", "BnbOutput", "decoder_lengths"]

IGNORED_LABEL = -100


@dataclass
class BnbModelOutput(ModelOutput):
    """What `BnbModel` returns. Padded input gives [B, T, ...] and [B, L, ...], zero at padding; packed, one row.

    Attributes:
        last_hidden_state: of the decoder, [B, T, H] or [sum T, H].
        latent: of each source token, before dropout, [B, L, latent_size] or [N, latent_size].
        encoder_last_hidden_state: [B, L, H] or [N, H].
        decoder_lengths: int64 [B].
        decoder_layout: where the decoder's sequences lie in a packed row.
    """

    last_hidden_state: Tensor | None = None
    latent: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    decoder_lengths: Tensor | None = None
    decoder_layout: PackedLayout | None = None


@dataclass
class BnbOutput(ModelOutput):
    """What `BnbForConditionalGeneration` returns.

    Attributes:
        loss: [], mean nats per target token of the feasible samples of this batch.
        loss_sum: float32 [], nats of all feasible samples (float64 in a float64 model).
        loss_count: int64 [], target tokens of the feasible samples.
        num_infeasible: int64 [], samples whose target does not fit their decoder slots; they add nothing above.
        logits: [B, T, V] (zero at padding) or packed [sum T, V]; None when there are labels, unless asked for.
        decoder_lengths: int64 [B].
        encoder_last_hidden_state: [B, L, H] or packed [N, H].
    """

    loss: Tensor | None = None
    loss_sum: Tensor | None = None
    loss_count: Tensor | None = None
    num_infeasible: Tensor | None = None
    logits: Tensor | None = None
    decoder_lengths: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None


class BnbPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation, common to all BnB models."""

    config_class = BnbConfig
    config: BnbConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_attention_backend = True
    _no_split_modules: ClassVar[list[str]] = ["BertEmbeddings", "BnbDecoderEmbeddings", "BertLayer"]

    def __init__(self, config: BnbConfig, *args: Any, **kwargs: Any):
        # The only implementation that understands packed rows, whatever the caller or the environment prefers.
        config._attn_implementation = IMPLEMENTATION
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BertEmbeddings):
            # Buffers that no checkpoint holds: a model made on the meta device gets them here.
            module.position_ids.copy_(torch.arange(module.position_ids.shape[-1])[None])
            module.token_type_ids.zero_()


class BnbModel(BnbPreTrainedModel):
    """Encoder, latent and decoder, without the LM head."""

    # The head of a model saved by the next class has no place here.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^lm_head\."]

    def __init__(self, config: BnbConfig):
        super().__init__(config)
        self.encoder = BnbEncoder(config.encoder)
        self.latent = nn.Linear(config.encoder.hidden_size, config.latent_size)
        self.latent_dropout = nn.Dropout(config.latent_dropout)
        self.enc_to_dec_proj = None
        if config.encoder.hidden_size != config.decoder.hidden_size:
            self.enc_to_dec_proj = nn.Linear(config.encoder.hidden_size, config.decoder.hidden_size)
        self.decoder = BnbDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The encoder's word embeddings."""
        return self.encoder.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the encoder's word embeddings."""
        self.encoder.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        packed: PackedInputs | None = None,
    ) -> BnbModelOutput:
        """Encode the sources and decode all slots. Arguments as in `BnbForConditionalGeneration.forward`.

        Args:
            packed: the same inputs already packed, from a caller that needed that itself; ``input_ids`` is not read.
        """
        inputs = packed or pack_inputs(input_ids, attention_mask, token_type_ids, cu_seqlens, max_seqlen)
        slots = open_slots(inputs.layout, self.config)
        encoded_NH = self.encoder(inputs)
        latent_NL = self.latent(encoded_NH)
        memory_NH = encoded_NH if self.enc_to_dec_proj is None else self.enc_to_dec_proj(encoded_NH)
        decoded_TH = self.decoder(self.latent_dropout(latent_NL), self.latent_dropout(memory_NH), slots, inputs.layout)
        stay_packed = inputs.is_packed or packed is not None
        return BnbModelOutput(
            last_hidden_state=decoded_TH if stay_packed else slots.layout.pad(decoded_TH),
            latent=latent_NL if stay_packed else inputs.restore(latent_NL),
            encoder_last_hidden_state=encoded_NH if stay_packed else inputs.restore(encoded_NH),
            decoder_lengths=slots.layout.lengths,
            decoder_layout=slots.layout,
        )


class BnbForConditionalGeneration(BnbPreTrainedModel, GenerationMixin):
    """BERT-NAR-BERT with its LM head and CTC loss.

    The output matrix is ``model.decoder.embeddings.word_embeddings.weight`` itself: tied by construction.
    """

    def __init__(self, config: BnbConfig):
        super().__init__(config)
        self.model = BnbModel(config)
        self.lm_head = BnbLMHead(config.decoder)
        self.post_init()

    @classmethod
    def from_bert(
        cls, encoder: str | PathLike[str], decoder: str | PathLike[str] | None = None, **overrides: Any
    ) -> BnbForConditionalGeneration:
        """Start from BERT checkpoints: a Hugging Face directory or hub name each, of any size and vocabulary.

        Embeddings, self-attention and feed-forward layers of both halves are taken over, and the LM head where the
        decoder's checkpoint has one. Cross-attention, latent and (for different hidden sizes) the projection between
        the halves are new, drawn from torch's global generator.

        Args:
            encoder: checkpoint of the encoder.
            decoder: checkpoint of the decoder; None: the encoder's.
            overrides: fields of `BnbConfig` other than ``encoder`` and ``decoder``, such as ``latent_size``; and
                ``hidden_dropout_prob`` and ``attention_probs_dropout_prob`` of both halves.

        Returns:
            The model in float32 and, as from `from_pretrained`, in evaluation mode.

        Raises:
            CheckpointError: a checkpoint is missing, damaged, or not a BERT.
            ConfigError: an unknown override, or a value out of its range.
        """
        return initialise_from_bert(cls, encoder, decoder, overrides)

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
    ) -> BnbOutput:
        """Predict all target positions at once, and score them against ``labels`` by CTC.

        Args:
            input_ids: int64 [B, L], or packed [N] with ``cu_seqlens``. A token's position is its index among the real
                tokens of its sequence.
            attention_mask: [B, L], not 0 at real tokens, wherever they stand; None: all are real. Padded form only.
            token_type_ids: int64, shaped as ``input_ids``; None: all 0.
            labels: int64 [B, S] with -100 at places that are no target, or the targets concatenated [sum S] with
                ``label_lengths``.
            cu_seqlens: int32 [B+1], starts of the packed sequences, and N.
            max_seqlen: the longest of them; optional, it spares a GPU from waiting.
            label_lengths: int64 [B], with concatenated labels.
            max_label_length: the longest of them; optional. It is checked on a CPU as ``max_seqlen`` is; on a GPU it
                spares waiting, and labels and their lengths are then trusted.
            return_logits: True returns logits beside the loss, which costs a second projection; default: logits only
                where there are no labels.

        Raises:
            ValueError: shapes or lengths that do not belong together, or labels outside the vocabulary.
            ConfigError: a source or its decoder slots do not fit the position embeddings.
        """
        inputs = pack_inputs(input_ids, attention_mask, token_type_ids, cu_seqlens, max_seqlen)
        outputs = self.model(None, packed=inputs)
        hidden_TH = self.lm_head(outputs.last_hidden_state)
        layout = outputs.decoder_layout
        result = BnbOutput(
            decoder_lengths=outputs.decoder_lengths,
            encoder_last_hidden_state=inputs.restore(outputs.encoder_last_hidden_state),
        )
        if labels is not None:
            self._score(result, hidden_TH, layout, *_targets(labels, label_lengths, max_label_length), max_label_length)
        if return_logits or (labels is None and return_logits is None):
            logits_TV = F.linear(hidden_TH, self.get_output_embeddings().weight, self.lm_head.bias)
            result["logits"] = logits_TV if inputs.is_packed else layout.pad(logits_TV)
        return result

    def _score(
        self,
        result: BnbOutput,
        hidden_TH: Tensor,
        layout: PackedLayout,
        targets: Tensor,
        target_lengths_B: Tensor,
        max_target_length: int | None,
    ) -> None:
        ctc = linear_ctc_loss(
            hidden_TH,
            self.get_output_embeddings().weight,
            self.lm_head.bias,
            targets,
            None,
            target_lengths_B,
            blank=self.config.blank_token_id,
            reduction="sum",
            cu_seqlens=layout.cu_seqlens,
            max_input_length=layout.max_seqlen,
            max_target_length=max_target_length,
        )
        result["loss_sum"] = ctc.loss
        result["loss_count"] = (target_lengths_B * ~ctc.infeasible).sum()
        result["num_infeasible"] = ctc.infeasible.sum()
        result["loss"] = result.loss_sum / result.loss_count.clamp(min=1)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Greedy CTC decoding, in one pass of the model: see `bnb_ds.decoding.generate`."""
        return generate(self, input_ids, attention_mask, token_type_ids)


def _targets(labels: Tensor, label_lengths: Tensor | None, max_label_length: int | None) -> tuple[Tensor, Tensor]:
    """Concatenated targets [sum S] and int64 [B] lengths."""
    if label_lengths is not None:
        if labels.dim() != 1:
            raise ValueError("with label_lengths, labels must be the targets concatenated, [sum of label_lengths]")
        if max_label_length is not None and label_lengths.device.type == "cpu":
            longest = int(label_lengths.max())
            if max_label_length != longest:
                raise ValueError(
                    f"max_label_length is {max_label_length}, but the longest of label_lengths is {longest}"
                )
        return labels, label_lengths
    if labels.dim() != 2:
        raise ValueError("labels must be [B, S] with -100 behind each target, or [sum S] with label_lengths")
    is_target_BS = labels != IGNORED_LABEL
    return labels[is_target_BS], is_target_BS.sum(1)


AutoConfig.register(BnbConfig.model_type, BnbConfig, exist_ok=True)
AutoModel.register(BnbConfig, BnbModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(BnbConfig, BnbForConditionalGeneration, exist_ok=True)
