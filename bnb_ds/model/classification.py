"""The encoder alone: as a model for sequence classification (GLUE), and as a plain encoder for any other use.

Shapes: B sequences, L padded source columns, N packed source tokens, H hidden size, C classes.
"""

from __future__ import annotations

import copy
import inspect
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.models.bert.modeling_bert import BertPooler

from bnb_ds.common.packing import pack_inputs
from bnb_ds.errors import ConfigError
from bnb_ds.hf.forward_arguments import in_form, take_return_dict
from bnb_ds.model.backbones.entries import backbone_of
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.from_bert import load_encoder, read_bert, read_bert_config
from bnb_ds.model.layers import BnbEncoder
from bnb_ds.model.lm_head_model import BnbLMHeadModel
from bnb_ds.model.network import BnbModelWithEncoder, BnbPreTrainedModel
from bnb_ds.model.outputs import BnbClassifierOutput

#: weights of a saved sequence-to-sequence model that do not belong to the encoder
_OTHER_PARTS = [r"^lm_head\.", r"^(model\.)?(latent|decoder|length_predictor|enc_to_dec_proj)\."]


class BnbEncoderModel(BnbModelWithEncoder):
    """The encoder of a BERT-NAR-BERT. It can also be loaded from the directory of a whole model."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [*_OTHER_PARTS, r"^pooler\."]

    def __init__(self, config: BnbConfig):
        super().__init__(config)
        self.encoder = BnbEncoder(config.encoder)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """Hidden states of the last layer, [B, L, H] with zeros at padding, or packed [N, H].

        Args:
            input_ids, attention_mask, token_type_ids, cu_seqlens, max_seqlen: see `bnb_ds.common.packing.pack_inputs`.
        """
        inputs = pack_inputs(input_ids, attention_mask, token_type_ids, cu_seqlens, max_seqlen)
        return inputs.restore(self.encoder(inputs))

    def to_bert(self, pooler: dict[str, Tensor] | None = None) -> PreTrainedModel:
        """A model of transformers with the same weights, in evaluation mode: a `BertModel`, or its family's own.

        ``to_bert().save_pretrained(DIR)`` writes a directory that any software for the family can load.

        Args:
            pooler: ``pooler.dense.weight`` and ``pooler.dense.bias``; None or empty: the model has no pooler.
        """
        config = copy.deepcopy(self.config.encoder)
        config._attn_implementation = "sdpa"
        backbone = backbone_of(config)
        arguments = inspect.signature(backbone.encoder_class.__init__).parameters
        has_pooler = "add_pooling_layer" in arguments
        bert = backbone.encoder_class(config, **({"add_pooling_layer": bool(pooler)} if has_pooler else {}))
        bert.to(self.dtype)  # pyright: ignore[reportArgumentType] - transformers declares it without its `self`
        own = {backbone.their_body(name): weight for name, weight in self.encoder.state_dict().items()}
        bert.load_state_dict({**own, **((pooler or {}) if has_pooler else {})})
        return bert.eval()


def encoder_of(model: BnbLMHeadModel) -> BnbEncoderModel:
    """The encoder of a whole model as a separate model with the same parameters."""
    alone = BnbEncoderModel(model.config)
    alone.encoder = model.model.encoder
    return alone


class BnbForSequenceClassification(BnbPreTrainedModel):
    """Encoder, BERT's pooler over the first token, and a linear layer to ``config.num_labels`` classes.

    One label means regression. From a saved `bnb_ds.modeling.BnbForConditionalGeneration` the encoder is loaded, and
    so is the pooler of the BERT that its pre-training began with; without one, the pooler is new. The dropout before
    the classifier is ``config.encoder.classifier_dropout``, or ``config.encoder.hidden_dropout_prob`` if that is
    None.
    """

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = _OTHER_PARTS
    #: transformers' Trainer divides a step's losses by the number of micro batches itself
    accepts_loss_kwargs = False

    def __init__(self, config: BnbConfig):
        super().__init__(config)
        self.model = BnbEncoderModel(config)
        self.pooler = BertPooler(config.encoder)
        dropout = config.encoder.classifier_dropout
        self.dropout = nn.Dropout(
            backbone_of(config.encoder).hidden_dropout(config.encoder) if dropout is None else dropout
        )
        num_labels = config.num_labels
        assert num_labels is not None, "transformers gives every configuration a number of labels"
        self.classifier = nn.Linear(config.encoder.hidden_size, num_labels)
        self.post_init()

    @classmethod
    def from_bert(
        cls, checkpoint: str | PathLike[str], *, num_labels: int, **overrides: Any
    ) -> BnbForSequenceClassification:
        """Start from a BERT checkpoint: take over its encoder, and its pooler if it has one.

        Args:
            checkpoint: Hugging Face directory or hub name.
            num_labels: classes; 1 for regression.
            overrides: fields of the BERT configuration, such as ``hidden_dropout_prob``.

        Raises:
            CheckpointError: the checkpoint is missing, damaged, or not a BERT.
            ConfigError: ``num_labels`` is below 1.
        """
        if num_labels < 1:
            raise ConfigError(f"num_labels is {num_labels}: give the number of classes, or 1 for regression")
        bert_config = read_bert_config(checkpoint)
        bert_config.update(overrides)
        model = cls(BnbConfig(encoder=bert_config, num_labels=num_labels))
        model.load_bert(checkpoint)
        return model.eval()

    def load_bert(self, checkpoint: str | PathLike[str]) -> None:
        """Take over the encoder of a BERT checkpoint of this size, and its pooler if it has one.

        Raises:
            CheckpointError: the checkpoint is missing, damaged, or not a BERT.
        """
        bert = read_bert(checkpoint)
        load_encoder(self.model.encoder, self.config.encoder, bert)
        if bert.pooler is not None:
            self.pooler.load_state_dict(bert.pooler)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        **options: Any,
    ) -> BnbClassifierOutput:
        """Classify each sequence.

        Args:
            input_ids, attention_mask, token_type_ids, cu_seqlens, max_seqlen: see `bnb_ds.common.packing.pack_inputs`.
            labels: int64 [B], classes. For regression float [B].
            options: ``return_dict`` (False: return a tuple), and arguments of other models, which may be None.

        Raises:
            ValueError: ``labels`` does not have shape [B].
            ConfigError: an argument of other models has a value, or is unknown.
        """
        returns_dict = take_return_dict(options, last=True)
        inputs = pack_inputs(input_ids, attention_mask, token_type_ids, cu_seqlens, max_seqlen)
        hidden_NH = self.model.encoder(inputs)
        first_BH = hidden_NH.index_select(0, inputs.layout.cu_seqlens[:-1].long())
        logits_BC = self.classifier(self.dropout(self.pooler(first_BH[:, None])))
        return in_form(classification_output(logits_BC, labels), returns_dict)


def classification_output(logits_BC: Tensor, labels: Tensor | None) -> BnbClassifierOutput:
    """The logits, and with labels their loss: cross-entropy, or squared error if there is one class.

    Raises:
        ValueError: ``labels`` does not have shape [B].
    """
    result = BnbClassifierOutput(logits=logits_BC)
    if labels is None:
        return result
    if labels.shape != logits_BC.shape[:1]:
        raise ValueError(f"labels has shape {list(labels.shape)} for {logits_BC.shape[0]} sequences: give one for each")
    exact = logits_BC.to(torch.promote_types(logits_BC.dtype, torch.float32))
    loss_sum = (
        F.mse_loss(exact[:, 0], labels.to(exact.dtype), reduction="sum")
        if exact.shape[1] == 1
        else F.cross_entropy(exact, labels, reduction="sum")
    )
    result["loss_sum"] = loss_sum
    result["loss_count"] = torch.full((), labels.numel(), device=labels.device)
    result["loss"] = loss_sum / labels.numel()
    return result


AutoModelForSequenceClassification.register(BnbConfig, BnbForSequenceClassification, exist_ok=True)
