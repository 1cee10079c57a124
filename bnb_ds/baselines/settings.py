"""The ``model`` sections of recipes for baselines; ``kind`` selects the baseline."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bnb_ds.config.model_section import LayerSize
from bnb_ds.config.section import Probability, Section


class Seq2SeqSize(LayerSize):
    """Shape of an encoder-decoder with random weights; the defaults are the paper's Transformer."""

    #: numbers of a token's vector between the layers; a multiple of ``num_attention_heads``
    hidden_size: Annotated[int, Field(gt=0)] = 512
    #: layers of the encoder
    encoder_layers: Annotated[int, Field(gt=0)] = 6
    #: layers of the decoder
    decoder_layers: Annotated[int, Field(gt=0)] = 6
    #: attention heads of each layer
    num_attention_heads: Annotated[int, Field(gt=0)] = 8
    #: width of the feed-forward layers
    intermediate_size: Annotated[int, Field(gt=0)] = 2048


class AutoregressiveSection(Section):
    """Fields of all autoregressive kinds."""

    #: dropout of hidden states and attention; None: the checkpoint's own, and 0.1 with random weights
    dropout: Probability | None = None
    #: fraction of the target distribution that is uniform during training
    label_smoothing: Probability = 0.0
    #: beams of the trained model in evaluation and distillation; evaluations during training use 1
    num_beams: Annotated[int, Field(ge=1)] = 4
    #: a hypothesis' log-probability is divided by its length to this power
    length_penalty: float = 1.0
    #: an output may not repeat an n-gram of this many tokens; 0: no such rule
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = 0


class Bert2bertSection(AutoregressiveSection):
    """A BERT encoder and a BERT decoder (Rothe et al., 2020), from checkpoints or with random weights of ``size``.

    Checkpoints may be RoBERTas and XLM-Rs too.
    """

    kind: Literal["bert2bert"]
    #: a BERT checkpoint to start the encoder from: a directory, or a name on the Hugging Face hub
    encoder: str | None = None
    #: a BERT checkpoint to start the decoder from; default: that of the encoder
    decoder: str | None = None
    size: Seq2SeqSize | None = None
    #: both halves share one set of weights
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
            raise ValueError("tie_encoder_decoder needs equal numbers of encoder_layers and decoder_layers")
        return self


class TransformerSection(AutoregressiveSection):
    """The paper's Transformer (Marian) with random weights."""

    kind: Literal["transformer"]
    size: Seq2SeqSize = Seq2SeqSize()


class Seq2SeqSection(AutoregressiveSection):
    """An encoder-decoder checkpoint of transformers, such as BART or BioBART."""

    kind: Literal["seq2seq"]
    #: Hugging Face directory or hub name
    checkpoint: str


class ClassifierSection(Section):
    """A checkpoint of BERT, of another encoder, or of OpenAI GPT, with a new classification head."""

    kind: Literal["classifier"]
    #: Hugging Face directory or hub name
    checkpoint: str
    #: dropout of hidden states and attention; None: the checkpoint's own
    dropout: Probability | None = None
