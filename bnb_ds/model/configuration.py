"""The configuration of a BERT-NAR-BERT model, as saved in ``config.json``.

It holds two complete configurations of pre-trained encoders, ``encoder`` and ``decoder``, which may differ in family,
depth, width and vocabulary. A few more settings join them: the latent, the number of decoder slots of a source, and the
parts of the loss.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal

from transformers import AutoConfig, PreTrainedConfig

from bnb_ds.hf.model_code import AUTO_MAP, write_code
from bnb_ds.model.backbones.entries import backbone_of, half_of
from bnb_ds.model.settings_rules import check_settings


class BnbConfig(PreTrainedConfig):
    """Configuration of a BERT-NAR-BERT model.

    Args:
        encoder: configuration of the encoder, of a family in `bnb_ds.model.backbones.entries`, or a dict of its
            fields. Default: BERT-base.
        decoder: the same for the decoder; its ``is_decoder`` and ``add_cross_attention`` are set here. Default: as
            ``encoder``.
        latent_size: number of values per source token that pass from encoder to decoder.
        latent_dropout: dropout probability on the latents and on the memory of cross-attention; the
            reference's pre-training has 0, its fine-tuning 0.5.
        decoder_length: policy for the number of decoder slots T of a source of n real tokens. ``"source"``: CTC over
            ``T = clamp(ceil(ratio * n) + offset, min, max)`` slots. ``"predicted"``: length classification; T follows
            the number m of target tokens, the true one in training and the predicted one otherwise: T = m for
            ``target`` ``"token"``, else ``floor(ratio * (m - 2)) + 2``.
            ``"padded"``: CTC over as many slots as the padded input has columns, where [PAD] positions feed the decoder
            too. The reference implementation does this; use it only to reproduce the reference.
        target: what reads the slots. ``"ctc"``: CTC. ``"token"``: each slot is one token, for ``decoder_length``
            ``"predicted"``. ``"dag"``: paths through a graph of slots. None: ``"token"`` for ``"predicted"``, else
            ``"ctc"``.
        link_heads: attention heads of the links between slots, for ``"dag"``; None: the decoder's number of heads.
        link_positions: most slots of a graph.
        decoder_tokens: a slot's input holds a token too: the mask token where nothing is known, and with ``"dag"`` the
            first and the last token in the first and the last slot. Glancing and refinement need it.
        slot_tokens: what a slot's input holds where nothing is known. ``"mask"``: the mask token. ``"source"``: the
            source token that the slot stands for (Gu et al., ICLR 2018); ``"inserted"``: the first slot of a source
            token holds that token, and its others the mask token. Both halves then have one vocabulary.
        has_decoder: whether there is a decoder. Without one, the encoder reads the slots themselves, which hold the
            source tokens with mask tokens between them (``slot_tokens`` ``"inserted"``), and predicts with its own word
            embeddings; ``decoder`` then repeats ``encoder``.
        decoder_latent: a slot's input holds a latent. Without, latents serve the length classification only.
        refined_tokens: what the passes behind the first one predict anew (`bnb_ds.decoding.refinement`).
            ``"unsure"``: the least probable tokens. ``"all"``: all of them, until nothing changes (Lee et al., EMNLP
            2018).
        head_transform: the LM head has BERT's dense layer in front of its matrix; BART has none.
        decoding: fields of `bnb_ds.decoding.options.DecodeOptions` (which ones: `bnb_ds.model.settings_rules.DECODING`)
            if nothing else is said; those that are left out have the values that all models have.
        deep_supervision: every decoder layer predicts tokens through the LM head; the next layer reads them beside the
            hidden states, and training takes the mean of the layers' losses (Huang et al., AAAI 2022).
        deep_supervision_every: with ``deep_supervision``, only every n-th layer predicts, counted from the last one;
            fewer heads make training and generation cheaper.
        segment_blocks: with ``"dag"``, where a target holds several segments with the mask token between them, as
            infilling's have, each segment has a block of the graph (`bnb_ds.targets.blocks`).
        embedding_range: standard deviation of new embeddings of the decoder: words, positions, and places of links;
            None: as all weights (``initializer_range`` of the halves).
        taken_layers: the layers of the deeper checkpoint that ``"encoder"`` and ``"decoder"`` began with, counted from
            0 (`bnb_ds.model.students.layer_choice`); a record that nothing reads. None: all of them.
        decoder_length_ratio: slots per source token, in decimal notation (1.1 means exactly 11/10).
        decoder_length_offset: number of slots added to that.
        decoder_length_min: fewest slots.
        decoder_length_max: most slots; None: no limit.
        length_difference_min: with ``"predicted"``, the smallest length difference (target minus source tokens) with
            its own class. Smaller differences belong to that class too.
        length_difference_max: the largest difference with its own class. Larger differences belong to that class too.
        length_loss_weight: with ``"predicted"``, the weight of a sequence's length loss, which is added to the mean
            loss of its tokens.
        kl_weight: weight of the smoothing term, which is added to the mean loss of a sequence's target tokens. The term
            is the mean over the sequence's slots of KL(uniform || p). It is ``beta`` of the reference implementation.
        loss_reduction: ``"token"``: a sequence's weight in the loss is its number of target tokens. ``"sample"``: all
            sequences have the same weight, as in torch's CTC loss and in the reference implementation.
        tie_encoder_decoder: the decoder shares the encoder's embeddings, self-attention and feed-forward layers.
        decoder_positions: ``"absolute"``: slot j has position embedding j and token type 0, so T is limited to the
            decoder's ``max_position_embeddings``. ``"shared"``: the slots of one source token share the position
            embedding of that token; the token type is 0 for the first of them and 1 for the others, which are equal.
            T may then exceed the number of position embeddings.
        blank_token_id: the CTC blank, an id of the decoder's vocabulary; None: its padding token, which is 0 for BERT.
        mask_token_id: ``[MASK]`` for BERT; needed with ``decoder_tokens``.
        pair_separator_id: the token behind each of two source texts, ``[SEP]`` for BERT. The encoder then gives the
            second text token type 1, whatever ``token_type_ids`` say. None: token types are those that are given, else
            0.
        pad_token_id: fills generated ids behind their end, and marks padding in ``input_ids`` of two halves of BERT;
            `source_pad_token_id` does so otherwise. ``"decoder"``: that of the decoder, 0 for BERT.
        bos_token_id: first token of a target, ``[CLS]`` for BERT; None: that of the decoder's configuration, if its
            family has one.
        eos_token_id: last token of a target, ``[SEP]`` for BERT; None: as ``bos_token_id``.

    Raises:
        ConfigError: a value is out of range, or values do not fit together; the message names the field.

    Source: Sohrab et al., BERT-NAR-BERT, IEEE Access 12 (2024), section 2.1.
    """

    model_type = "bnb"
    sub_configs: ClassVar[dict[str, type[Any]]] = {"encoder": AutoConfig, "decoder": AutoConfig}
    #: of the outputs, what transformers' Trainer does not gather: all but logits and ``best``
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "loss_sum",
        "loss_count",
        "num_infeasible",
        "kl",
        "length_loss",
        "latent",
        "decoder_lengths",
        "encoder_last_hidden_state",
    ]

    def __init__(
        self,
        encoder: PreTrainedConfig | dict[str, Any] | None = None,
        decoder: PreTrainedConfig | dict[str, Any] | None = None,
        latent_size: int = 8,
        latent_dropout: float = 0.0,
        decoder_length: str = "source",
        decoder_length_ratio: float = 2.0,
        decoder_length_offset: int = 0,
        decoder_length_min: int = 1,
        decoder_length_max: int | None = None,
        length_difference_min: int = -128,
        length_difference_max: int = 128,
        length_loss_weight: float = 0.1,
        kl_weight: float = 0.0,
        loss_reduction: str = "token",
        tie_encoder_decoder: bool = False,
        decoder_positions: str = "absolute",
        target: str | None = None,
        link_heads: int | None = None,
        link_positions: int = 1024,
        decoder_tokens: bool = False,
        slot_tokens: str = "mask",
        decoder_latent: bool = True,
        refined_tokens: str = "unsure",
        head_transform: bool = True,
        decoding: dict[str, Any] | None = None,
        deep_supervision: bool = False,
        deep_supervision_every: int = 1,
        segment_blocks: bool = False,
        embedding_range: float | None = None,
        taken_layers: dict[str, list[int]] | None = None,
        has_decoder: bool = True,
        blank_token_id: int | None = None,
        pad_token_id: int | Literal["decoder"] | None = "decoder",
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        mask_token_id: int | None = None,
        pair_separator_id: int | None = None,
        **kwargs: Any,
    ):
        self.encoder = half_of("encoder", encoder)
        self.decoder = half_of("decoder", self.encoder if decoder is None or not has_decoder else decoder)
        self.encoder.is_decoder = self.encoder.add_cross_attention = False
        self.decoder.is_decoder = self.decoder.add_cross_attention = True
        self.encoder.use_cache = self.decoder.use_cache = False  # nothing here is autoregressive
        kwargs.pop("auto_map", None)  # it leads to this class; see `save_pretrained`
        kwargs.setdefault("is_encoder_decoder", True)
        kwargs.setdefault("tie_word_embeddings", True)  # without it, transformers does not tie shared halves either
        super().__init__(**kwargs)
        self.latent_size = latent_size
        self.latent_dropout = latent_dropout
        self.decoder_length = decoder_length
        self.decoder_length_ratio = decoder_length_ratio
        self.decoder_length_offset = decoder_length_offset
        self.decoder_length_min = decoder_length_min
        self.decoder_length_max = decoder_length_max
        self.length_difference_min = length_difference_min
        self.length_difference_max = length_difference_max
        self.length_loss_weight = length_loss_weight
        self.kl_weight = kl_weight
        self.loss_reduction = loss_reduction
        self.tie_encoder_decoder = tie_encoder_decoder
        self.decoder_positions = decoder_positions
        self.target = target
        self.link_heads = link_heads
        self.link_positions = link_positions
        self.decoder_tokens = decoder_tokens
        self.slot_tokens = slot_tokens
        self.decoder_latent = decoder_latent
        self.refined_tokens = refined_tokens
        self.head_transform = head_transform
        self.decoding = dict(decoding or {})
        self.deep_supervision = deep_supervision
        self.deep_supervision_every = deep_supervision_every
        self.segment_blocks = segment_blocks
        self.embedding_range = embedding_range
        self.taken_layers = taken_layers
        self.has_decoder = has_decoder
        self.mask_token_id = mask_token_id
        self.pair_separator_id = pair_separator_id
        defaults = backbone_of(self.decoder).special_ids(self.decoder)
        self.blank_token_id = (defaults["blank_token_id"] or 0) if blank_token_id is None else blank_token_id
        self.pad_token_id = defaults["pad_token_id"] if pad_token_id == "decoder" else pad_token_id
        self.bos_token_id = defaults["bos_token_id"] if bos_token_id is None else bos_token_id
        self.eos_token_id = defaults["eos_token_id"] if eos_token_id is None else eos_token_id
        self.check()

    def save_pretrained(self, save_directory: str | PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """As in transformers. The file names code beside it, see `bnb_ds.hf.model_code`."""
        self.auto_map = AUTO_MAP
        try:
            super().save_pretrained(save_directory, push_to_hub, **kwargs)
        finally:
            del self.auto_map
        write_code(Path(save_directory))

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: a saved model comes with code of its own, not with a copy of this module."""

    @property
    def vocab_size(self) -> int:
        """Size of the output vocabulary, the decoder's."""
        return self.decoder.vocab_size

    @property
    def source_pad_token_id(self) -> int | None:
        """What marks padding in ``input_ids`` if no mask does: of a half that is no BERT, its own padding token."""
        if self.encoder.model_type == self.decoder.model_type == "bert":
            return self.pad_token_id
        return self.encoder.pad_token_id

    @property
    def target_kind(self) -> str:
        """``"ctc"``, ``"token"`` or ``"dag"``; `target` with its default."""
        return self.target or ("token" if self.decoder_length == "predicted" else "ctc")

    @property
    def predicting_layers(self) -> list[int]:
        """Layers of the decoder behind which the next one reads predictions; the last layer is not among them."""
        last = self.decoder.num_hidden_layers - 1
        return (
            [n for n in range(last) if (last - n) % self.deep_supervision_every == 0] if self.deep_supervision else []
        )

    def __eq__(self, other: object) -> bool:
        # transformers turns configurations into dataclasses whose generated __eq__ would not see our fields.
        return isinstance(other, BnbConfig) and self._content() == other._content()

    def _content(self) -> dict[str, Any]:
        """What `config.json` says. Loading a model adds the path, and copies its dtype to the halves."""
        content = self.to_dict()
        content.pop("_name_or_path", None)
        for half in ("encoder", "decoder"):
            content[half] = {
                key: value for key, value in content[half].items() if key not in ("dtype", "_name_or_path")
            }
        return content

    __hash__ = None  # type: ignore[assignment]  # how Python marks a class that is not hashable

    def check(self) -> None:
        """Raise ConfigError for a value out of range, or for values that do not fit together."""
        check_settings(self)


AutoConfig.register(BnbConfig.model_type, BnbConfig, exist_ok=True)
