"""What a recipe's ``model`` says of a baseline; ``kind`` tells which."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bnb_ds.config.sections import Probability, Section


class Seq2SeqSize(Section):
    """Shape of an encoder-decoder with random weights; the defaults are those of the paper's Transformer."""

    hidden_size: Annotated[int, Field(gt=0)] = 512
    encoder_layers: Annotated[int, Field(gt=0)] = 6
    decoder_layers: Annotated[int, Field(gt=0)] = 6
    num_attention_heads: Annotated[int, Field(gt=0)] = 8
    intermediate_size: Annotated[int, Field(gt=0)] = 2048
    max_position_embeddings: Annotated[int, Field(gt=0)] = 512

    @model_validator(mode="after")
    def _heads_divide(self) -> Seq2SeqSize:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self


class AutoregressiveSection(Section):
    """Common to the autoregressive kinds."""

    #: of hidden states and of attention; None: as the checkpoint has it, 0.1 in models with random weights
    dropout: Probability | None = None
    #: share of the target distribution that is uniform, while training
    label_smoothing: Probability = 0.0
    #: of the trained model, where it is evaluated and where it teaches; while training it is scored with 1
    num_beams: Annotated[int, Field(ge=1)] = 4
    #: exponent of the length by which a hypothesis' log-probability is divided
    length_penalty: float = 1.0
    #: no n-gram of that many tokens twice in an output; 0: no such rule
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = 0


class Bert2bertSection(AutoregressiveSection):
    """BERT checkpoints for both halves (Rothe et al., 2020), or random weights of ``size``."""

    kind: Literal["bert2bert"]
    #: Hugging Face directory or hub name; ``decoder`` is ``encoder`` where it is not given
    encoder: str | None = None
    decoder: str | None = None
    size: Seq2SeqSize | None = None
    #: one set of weights for both halves
    tie_encoder_decoder: bool = False

    @model_validator(mode="after")
    def _one_start(self) -> Bert2bertSection:
        if self.decoder is not None and self.encoder is None:
            raise ValueError("decoder needs encoder: name both checkpoints or neither")
        if (self.encoder is None) == (self.size is None):
            raise ValueError("give either encoder (BERT checkpoints) or size (random weights)")
        if self.tie_encoder_decoder and self.decoder not in (None, self.encoder):
            raise ValueError("tie_encoder_decoder needs the same checkpoint for encoder and decoder; remove decoder")
        if self.tie_encoder_decoder and self.size and self.size.encoder_layers != self.size.decoder_layers:
            raise ValueError("tie_encoder_decoder needs as many encoder_layers as decoder_layers")
        return self


class TransformerSection(AutoregressiveSection):
    """A Transformer with random weights: Marian's, as in the paper."""

    kind: Literal["transformer"]
    size: Seq2SeqSize = Seq2SeqSize()


class Seq2SeqSection(AutoregressiveSection):
    """An encoder-decoder checkpoint of transformers, such as BART or BioBART."""

    kind: Literal["seq2seq"]
    #: Hugging Face directory or hub name
    checkpoint: str


class ClassifierSection(Section):
    """A checkpoint with a new classification head: BERT, OpenAI GPT."""

    kind: Literal["classifier"]
    #: Hugging Face directory or hub name
    checkpoint: str
    #: of hidden states and of attention; None: as the checkpoint has it
    dropout: Probability | None = None
