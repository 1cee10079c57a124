"""What a recipe says of a baseline."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bnb_ds.config import Probability, Section

Kind = Literal["bert2bert", "transformer", "seq2seq", "classifier"]

#: fields that a kind does not take
_FOREIGN = {
    "bert2bert": ("checkpoint",),
    "transformer": ("checkpoint", "encoder", "decoder", "tie_encoder_decoder"),
    "seq2seq": ("encoder", "decoder", "size", "tie_encoder_decoder"),
    "classifier": ("encoder", "decoder", "size", "tie_encoder_decoder", "label_smoothing"),
}


class BaselineSize(Section):
    """Shape of a model with random weights; the defaults are those of the paper's Transformer (Marian's)."""

    hidden_size: Annotated[int, Field(gt=0)] = 512
    encoder_layers: Annotated[int, Field(gt=0)] = 6
    decoder_layers: Annotated[int, Field(gt=0)] = 6
    num_attention_heads: Annotated[int, Field(gt=0)] = 8
    intermediate_size: Annotated[int, Field(gt=0)] = 2048
    max_position_embeddings: Annotated[int, Field(gt=0)] = 512

    @model_validator(mode="after")
    def _heads_divide(self) -> BaselineSize:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self


class BaselineSection(Section):
    """A model to compare with.

    ``bert2bert``: BERT checkpoints for both halves, or random weights of ``size``; ``transformer``: random weights;
    ``seq2seq``: any encoder-decoder checkpoint of transformers (BART, BioBART); ``classifier``: a checkpoint with a
    new classification head (BERT, OpenAI GPT).
    """

    kind: Kind
    #: Hugging Face directory or hub name, of seq2seq and classifier
    checkpoint: str | None = None
    #: the same, of bert2bert; ``decoder`` is ``encoder`` where it is not given
    encoder: str | None = None
    decoder: str | None = None
    size: BaselineSize | None = None
    #: bert2bert: one set of weights for both halves (BERTSHARE of Rothe et al. 2020); needs one checkpoint for both
    tie_encoder_decoder: bool = False
    #: share of the target distribution that is uniform
    label_smoothing: Probability = 0.0
    #: of hidden states, and of attention; None: as the checkpoint has it, 0.1 in models with random weights
    dropout: Probability | None = None

    @model_validator(mode="after")
    def _fields_of_its_kind(self) -> BaselineSection:
        foreign = [name for name in _FOREIGN[self.kind] if name in self.model_fields_set]
        if foreign:
            raise ValueError(f"{foreign[0]} does not go with kind {self.kind}; remove it")
        if self.kind in ("seq2seq", "classifier") and self.checkpoint is None:
            raise ValueError(f"kind {self.kind} needs checkpoint: a Hugging Face directory or hub name")
        if self.kind == "bert2bert" and (self.encoder is None) == (self.size is None):
            raise ValueError("kind bert2bert needs either encoder (BERT checkpoints) or size (random weights)")
        if self.decoder is not None and self.encoder is None:
            raise ValueError("decoder needs encoder: name both checkpoints or neither")
        if self.tie_encoder_decoder and self.decoder not in (None, self.encoder):
            raise ValueError("tie_encoder_decoder needs the same checkpoint for encoder and decoder; remove decoder")
        if self.tie_encoder_decoder and self.size and self.size.encoder_layers != self.size.decoder_layers:
            raise ValueError("tie_encoder_decoder needs as many encoder_layers as decoder_layers")
        return self
