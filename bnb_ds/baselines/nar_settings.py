"""The ``model`` sections of the non-autoregressive baselines: a BERT-NAR-BERT with some fields fixed.

Each has one position for each target token, whose number is predicted, and no latent in the decoder's input. They
differ in what positions hold, in the noise of their training, and in how they decode.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bnb_ds.config.model_section import ModelSection, ModelSize
from bnb_ds.config.section import Probability, Section

#: values of a latent, which serves the length classification only
_LATENT_SIZE = 64
#: fields with the same name in `ModelSection`
_SAME_NAME = (
    "checkpoint",
    "encoder",
    "decoder",
    "size",
    "max_position_embeddings",
    "encoder_layers",
    "decoder_layers",
    "hidden_dropout",
    "attention_dropout",
    "length_difference_min",
    "length_difference_max",
    "length_loss_weight",
)


class TransformerSize(ModelSize):
    """Shape of a model with random weights; the defaults are those of Transformer base."""

    #: numbers of a token's vector between the layers; a multiple of ``num_attention_heads``
    hidden_size: Annotated[int, Field(gt=0)] = 512
    #: layers of the encoder, and as many of the decoder; ``encoder_layers`` and ``decoder_layers`` replace it
    num_hidden_layers: Annotated[int, Field(gt=0)] = 6
    #: attention heads of each layer
    num_attention_heads: Annotated[int, Field(gt=0)] = 8
    #: width of the feed-forward layers
    intermediate_size: Annotated[int, Field(gt=0)] = 2048


class NarSection(Section):
    """Fields of all non-autoregressive baselines.

    ``encoder``, ``decoder``, ``size`` and ``checkpoint`` are as for a BERT-NAR-BERT. ``encoder`` may also be a BART,
    such as ELMER's public checkpoint, which gives both halves their weights. Without any of them, the model starts from
    random weights of the size of Transformer base.
    """

    #: a whole model of this kind to continue from: a directory, or a name on the Hugging Face hub
    checkpoint: str | None = None
    #: a BERT or BART checkpoint to start from; default: random weights
    encoder: str | None = None
    #: a BERT checkpoint to start the decoder from; default: that of the encoder
    decoder: str | None = None
    #: shape of a model with random weights
    size: TransformerSize | None = None
    #: position embeddings to use of BERT or BART checkpoints
    max_position_embeddings: Annotated[int, Field(gt=0)] | None = None
    #: layers of the encoder: evenly spaced ones of a checkpoint, or in the place of ``size.num_hidden_layers``
    encoder_layers: Annotated[int, Field(gt=0)] | None = None
    #: layers of the decoder, in the same way
    decoder_layers: Annotated[int, Field(gt=0)] | None = None
    #: dropout probability of hidden states
    hidden_dropout: Probability = 0.1
    #: dropout probability of attention weights
    attention_dropout: Probability = 0.1
    #: fraction of the target distribution that is uniform during training
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    #: smallest length difference (target minus source tokens) that has its own class
    length_difference_min: int = -128
    #: largest length difference that has its own class
    length_difference_max: int = 128
    #: weight of the length loss, added to the mean token loss
    length_loss_weight: Annotated[float, Field(ge=0)] = 0.1
    #: lengths that are tried for each source; the one whose tokens are most probable wins
    length_beam: Annotated[int, Field(ge=1)] = 1

    #: fields of `ModelSection` that the kind fixes
    fixed: ClassVar[dict[str, Any]] = {}

    @model_validator(mode="after")
    def _as_a_bnb(self) -> NarSection:
        self.as_bnb()  # its own rules for checkpoints and sizes hold here too
        return self

    def as_bnb(self) -> ModelSection:
        """The section of a BERT-NAR-BERT that makes this model. The fixed fields are given in it, so a checkpoint does
        not replace them."""
        own = {name: getattr(self, name) for name in _SAME_NAME if name in self.model_fields_set}
        values = {
            "decoder_length": "predicted",
            "decoder_positions": "absolute",
            "target": "token",
            "decoder_tokens": True,
            "decoder_latent": False,
            "decoding": self.decoding(),
            **self.fixed,
            **own,
        }
        if self.checkpoint is None:
            values["latent_size"] = _LATENT_SIZE
        if self.checkpoint is None and self.encoder is None and self.size is None:
            values["size"] = TransformerSize()
        if self.checkpoint is None or "label_smoothing" in self.model_fields_set:
            # (1 - e) nll + e (KL + log V) is (1 - e) (nll + e / (1 - e) KL), but for a constant.
            values["kl_weight"] = self.label_smoothing / (1 - self.label_smoothing)
        return ModelSection(**values)

    def decoding(self) -> dict[str, Any]:
        """Fields of `bnb_ds.decoding.options.DecodeOptions` that are the trained model's defaults."""
        return {"length_beam": self.length_beam} if self.length_beam > 1 else {}


class NatSection(NarSection):
    """NAT (Gu et al., ICLR 2018) without fertilities: positions hold a uniform copy of the source's tokens."""

    kind: Literal["nat"]
    fixed: ClassVar[dict[str, Any]] = {"slot_tokens": "source"}


class InatSection(NarSection):
    """iNAT (Lee et al., EMNLP 2018): in further passes, positions hold the output of the pass before."""

    kind: Literal["inat"]
    #: passes of a step in training; the loss is the mean of theirs
    passes: Annotated[int, Field(ge=1)] = 4
    #: probability that a sample reads its target with noise in a further pass, instead of its own output
    noise_share: Probability = 0.5
    #: probability that a token of such a target is changed
    noise_rate: Probability = 0.33
    #: most passes at decoding; a source whose tokens no longer change needs fewer
    iterations: Annotated[int, Field(ge=1)] = 10
    fixed: ClassVar[dict[str, Any]] = {"slot_tokens": "source", "refined_tokens": "all"}

    @model_validator(mode="after")
    def _trained_on_passes(self) -> InatSection:
        if self.passes == 1 and self.iterations > 1 and self.checkpoint is None:
            raise ValueError(
                f"passes is 1, so no pass reads the output of another in training, but iterations is {self.iterations}:"
                " set iterations to 1, or passes to at least 2"
            )
        return self

    def decoding(self) -> dict[str, Any]:
        return {**super().decoding(), **({"refinement": self.iterations - 1} if self.iterations > 1 else {})}


class CmlmSection(NarSection):
    """CMLM (Ghazvininejad et al., EMNLP 2019): the decoder sees some tokens of the target, and predicts the others."""

    kind: Literal["cmlm"]
    #: lengths that are tried for each source; the one whose tokens are most probable wins
    length_beam: Annotated[int, Field(ge=1)] = 5
    #: passes at decoding; each but the first predicts the least probable tokens anew
    iterations: Annotated[int, Field(ge=1)] = 10

    def decoding(self) -> dict[str, Any]:
        return {**super().decoding(), **({"refinement": self.iterations - 1} if self.iterations > 1 else {})}


class ElmerSection(NarSection):
    """ELMER (Li et al., EMNLP 2022): every decoder layer predicts, and the next one reads what it predicts.

    As released, no position exits ("soft"). With ``exit_entropy`` a position keeps its state behind the first layer
    that is sure of its token ("hard").
    """

    kind: Literal["elmer"]
    #: fraction of the target distribution that is uniform during training
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    #: probability that the right token replaces what a layer predicts for a position, in training
    mixed_training: Probability = 0.3
    #: entropy in nats below which a position exits; default: none exits
    exit_entropy: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    fixed: ClassVar[dict[str, Any]] = {"deep_supervision": True}

    def decoding(self) -> dict[str, Any]:
        return {**super().decoding(), **({} if self.exit_entropy is None else {"exit_entropy": self.exit_entropy})}
