"""The public Hugging Face models: they load checkpoints, generate, and pre-train.

`bnb_ds.model.lm_head_model` holds the forward pass. `BnbForPretraining` adds the auxiliary loss of pre-training, BERT's
own objective: masked tokens are predicted from the encoder's hidden states. The head for it uses the encoder's word
embeddings as its matrix. It serves training only; exported models do not have it.

Shapes: C tokens chosen for masking, H hidden size of the encoder, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, Literal, overload

from torch import Tensor
from transformers import AutoModel, AutoModelForSeq2SeqLM, GenerationConfig, GenerationMixin

from bnb_ds.decoding.decode import GenerateOutput, generate
from bnb_ds.errors import ConfigError
from bnb_ds.hf.forward_arguments import in_form, take_return_dict
from bnb_ds.hf.generation_arguments import decode_settings
from bnb_ds.hf.label_smoothing import refuse_label_smoothing
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.from_bert import initialise_from_bert
from bnb_ds.model.from_reference import load_reference
from bnb_ds.model.layers import BnbLMHead
from bnb_ds.model.lm_head_model import BnbLMHeadModel
from bnb_ds.model.network import BnbModel
from bnb_ds.model.outputs import BnbModelOutput, BnbOutput
from bnb_ds.model.slots import decoder_lengths
from bnb_ds.targets.token_target import cross_entropy_sum

__all__ = [
    "BnbConfig",
    "BnbForConditionalGeneration",
    "BnbForPretraining",
    "BnbModel",
    "BnbModelOutput",
    "BnbOutput",
    "PretrainingOutput",
    "decoder_lengths",
    "without_head",
]

_PREFIX = "encoder_mlm_head."


class BnbForConditionalGeneration(BnbLMHeadModel, GenerationMixin):
    """BERT-NAR-BERT as a Hugging Face model: it loads checkpoints and generates."""

    @classmethod
    def from_bert(
        cls, encoder: str | PathLike[str], decoder: str | PathLike[str] | None = None, **overrides: Any
    ) -> BnbForConditionalGeneration:
        """Start from checkpoints of BERT or of other backbones, of any size and vocabulary.

        Both halves take over embeddings, self-attention and feed-forward layers. The LM head is taken over if the
        decoder's checkpoint has one. Cross-attention, latent and (for different hidden sizes) the projection between
        the halves are new; they are drawn from torch's global generator.

        Args:
            encoder: checkpoint of the encoder, a Hugging Face directory or hub name.
            decoder: checkpoint of the decoder; None: the encoder's.
            overrides: fields of `BnbConfig` other than ``encoder`` and ``decoder``, such as ``latent_size``. For both
                halves also ``hidden_dropout_prob``, ``attention_probs_dropout_prob`` and ``max_position_embeddings``.
                The last one may be below the checkpoint's own number. With ``extend_positions=True`` it may be above
                it; the position embeddings are then repeated. ``encoder_layers`` and ``decoder_layers`` take evenly
                spaced layers of the checkpoints (`bnb_ds.model.students.layer_choice.taken_layers`).

        Returns:
            The model in float32 and in evaluation mode, as ``from_pretrained`` returns it.

        Raises:
            CheckpointError: a checkpoint is missing, damaged, of another family than those in
                `bnb_ds.model.backbones.entries`, or needs code of its own.
            ConfigError: an unknown override, or a value out of its range.
        """
        model, _ = initialise_from_bert(cls, encoder, decoder, overrides)
        return model

    @classmethod
    def from_reference(cls, directory: str | PathLike[str], **overrides: Any) -> BnbForConditionalGeneration:
        """Load a directory that the reference implementation's ``save_pretrained`` wrote.

        With ``decoder_length`` ``"padded"``, the default here, the model computes the same as the reference. If that
        drew latents in training (``is_vae``), the model has their mean, with which the reference decodes.
        ``overrides`` may set another policy, for example to train further with it.

        Args:
            directory: holds ``config.json`` and ``model.safetensors`` or ``pytorch_model.bin``.
            overrides: fields of `BnbConfig` other than ``encoder``, ``decoder`` and ``latent_size``.

        Returns:
            The model in float32 and evaluation mode.

        Raises:
            CheckpointError: no such directory; a weight is missing, left over or has another shape (the message names
                all of them); or the file holds something other than tensors.
            ConfigError: an unknown override, or a value out of its range.

        Source: aistairc/BERT-NAR-BERT.
        """
        return load_reference(cls, directory, overrides)

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether transformers' Trainer gives the target tokens of all micro batches of a step to `forward`."""
        return self.config.loss_reduction == "token"

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        num_items_in_batch: Tensor | int | None = None,
        **options: Any,
    ) -> BnbOutput:
        """As `BnbLMHeadModel.forward`, for callers such as transformers' Trainer and PEFT too.

        Arguments of other models, such as ``inputs_embeds`` or ``decoder_input_ids``, may be None.

        Args:
            input_ids, attention_mask, token_type_ids, labels: see `BnbLMHeadModel.forward`.
            num_items_in_batch: int64 [], the target tokens of all batches whose losses are added up. ``loss`` is then
                ``loss_sum`` divided by it; None: by ``loss_count``.
            options: further arguments of `BnbLMHeadModel.forward`, and ``return_dict``; False: return a tuple.

        Raises:
            ValueError, ConfigError: as `BnbLMHeadModel.forward`; or an argument of other models has a value.
        """
        returns_dict = take_return_dict(options)
        if input_ids is None:
            raise ConfigError("forward was given no input_ids: give the token ids of the sources")
        output = super().forward(input_ids, attention_mask, token_type_ids, labels, **options)
        if num_items_in_batch is not None and output.loss_sum is not None:
            output["loss"] = output.loss_sum / num_items_in_batch
        return in_form(output, returns_dict)

    @overload
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        return_scores: Literal[True],
        **options: Any,
    ) -> GenerateOutput: ...

    @overload
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        return_dict_in_generate: Literal[True],
        return_scores: bool = False,
        **options: Any,
    ) -> GenerateOutput: ...

    @overload
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        return_scores: Literal[False] = False,
        return_dict_in_generate: Literal[False] | None = None,
        **options: Any,
    ) -> Tensor: ...

    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        generation_config: GenerationConfig | None = None,
        return_scores: bool = False,
        **options: Any,
    ) -> Tensor | GenerateOutput:
        """Decode in one parallel pass, with all the options of `bnb_ds.decoding.decode.generate`.

        The names of transformers' ``generate`` go too: ``max_new_tokens`` and ``min_new_tokens`` (all tokens of an
        output are new), ``num_beams`` (the prefix beam search, or several lengths with ``decoder_length``
        ``"predicted"``), and ``return_dict_in_generate`` for ``return_scores``. They may stand in
        ``generation_config``, or in the model's own, which does not count beside ``options``. Arguments that change
        nothing here, such as ``use_cache``, are passed over.

        Raises:
            ConfigError: as `bnb_ds.decoding.decode.generate`; or transformers has an argument that asks for what a
                parallel decoder does not have, such as ``do_sample``.
        """
        if input_ids is None:
            input_ids = options.pop("inputs", None)
        if input_ids is None:
            raise ConfigError("generate was given no input_ids: give the token ids of the sources")
        if self.get_output_embeddings().weight.numel() == 0:
            raise ConfigError(
                "generate reads weights outside of the forward pass, and here ranks hold parts of them (ZeRO 3): train "
                "with ZeRO 1 or 2, or without predict_with_generate, and generate with the saved model"
            )
        decoding = options.pop("options", None)
        own = self.generation_config if decoding is None else None
        settings, returns_dict = decode_settings(
            options, own, generation_config, predicts_lengths=self.config.target_kind == "token"
        )
        return_scores = return_scores or returns_dict
        mask, types = attention_mask, token_type_ids
        return generate(self, input_ids, mask, types, return_scores=return_scores, options=decoding, **settings)


@dataclass
class PretrainingOutput(BnbOutput):
    """What `BnbForPretraining` returns when ``masked_index`` is given.

    Attributes:
        encoder_mlm_sum: float32 [], sum of the masked tokens' cross-entropies, in nats.
    """

    encoder_mlm_sum: Tensor | None = None


class BnbForPretraining(BnbForConditionalGeneration):
    """The model with a head on its encoder that predicts masked tokens."""

    _keys_to_ignore_on_load_missing: ClassVar[list[str]] = [rf"^{_PREFIX}"]

    def __init__(self, config: BnbConfig):
        super().__init__(config)
        self.encoder_mlm_head = BnbLMHead(config.encoder)
        self.post_init()

    @classmethod
    def from_bert(
        cls, encoder: str | PathLike[str], decoder: str | PathLike[str] | None = None, **overrides: Any
    ) -> BnbForPretraining:
        """As `BnbForConditionalGeneration.from_bert`. The head is taken from the encoder's checkpoint if it has one."""
        model, bert = initialise_from_bert(cls, encoder, decoder, overrides)
        if bert.head is not None:
            model.encoder_mlm_head.load_state_dict(bert.head)
        return model

    def forward(
        self,
        *args: Any,
        masked_index: Tensor | None = None,
        masked_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> BnbOutput:
        """As `BnbForConditionalGeneration.forward`, on packed input.

        Args:
            masked_index: int64 [C], places in the packed source whose original tokens are predicted; None: the head is
                not used.
            masked_labels: int64 [C], the original tokens.
        """
        output = super().forward(*args, **kwargs)
        if masked_index is None:
            return output
        assert output.encoder_last_hidden_state is not None
        assert masked_labels is not None
        chosen_CH = output.encoder_last_hidden_state.index_select(0, masked_index)
        return PretrainingOutput(**output, encoder_mlm_sum=self._nats(self.encoder_mlm_head(chosen_CH), masked_labels))

    def _nats(self, hidden_CH: Tensor, labels_C: Tensor) -> Tensor:
        bias_V = self.encoder_mlm_head.bias
        weight_VH = self.model.get_input_embeddings().weight
        if labels_C.numel() == 0:
            # A batch without masked tokens still gives every parameter its gradient: ZeRO waits for all of them.
            # Sums of no numbers: one of all of them could be infinite in float16, and then 0 times it is not a number.
            return (hidden_CH.sum() + bias_V[:0].sum() + weight_VH[:0].sum()).float()
        return cross_entropy_sum(hidden_CH, weight_VH, bias_V, labels_C, blank=self.config.blank_token_id).loss


def without_head(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without those of the head for masked tokens."""
    return {name: weight for name, weight in weights.items() if not name.startswith(_PREFIX)}


AutoModel.register(BnbConfig, BnbModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(BnbConfig, BnbForConditionalGeneration, exist_ok=True)
refuse_label_smoothing(BnbOutput)
