"""The ``model`` section of recipes for a BERT-NAR-BERT."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bnb_ds.config.section import Probability, Section


class LayerSize(Section):
    """Shape of the layers of a model with random weights (default: BERT base)."""

    #: numbers of a token's vector between the layers; a multiple of ``num_attention_heads``
    hidden_size: Annotated[int, Field(gt=0)] = 768
    #: attention heads of each layer
    num_attention_heads: Annotated[int, Field(gt=0)] = 12
    #: width of the feed-forward layers
    intermediate_size: Annotated[int, Field(gt=0)] = 3072
    #: most tokens of a sequence
    max_position_embeddings: Annotated[int, Field(gt=0)] = 512
    #: standard deviation of the random weights; above 0.05 the slots of a small BnB begin alike, and it learns badly
    initializer_range: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.02

    @model_validator(mode="after")
    def _heads_divide(self) -> LayerSize:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self


class ModelSize(LayerSize):
    """Shape of the encoder and of the decoder if both start from random weights (default: BERT base)."""

    #: layers of the encoder, and as many of the decoder; ``encoder_layers`` and ``decoder_layers`` replace it
    num_hidden_layers: Annotated[int, Field(gt=0)] = 12


class DecodingSection(Section):
    """How a model decodes if nothing else is said (`bnb_ds.decoding.options.DecodeOptions`)."""

    #: lengths to try, with predicted lengths; default: one
    length_beam: Annotated[int, Field(ge=1)] | None = None
    #: passes of the decoder behind the first one; default: none
    refinement: Annotated[int, Field(ge=0)] | None = None
    #: entropy in nats below which a position exits a layer, with deep_supervision; default: none exits
    exit_entropy: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    #: nats by which the CTC blank is lowered, for longer outputs; default: none
    blank_penalty: Annotated[float, Field(allow_inf_nan=False)] | None = None


class ModelSection(Section):
    """The model to train.

    ``encoder`` and ``decoder`` name checkpoints of BERT or of another family in `bnb_ds.model.backbones` (a Hugging
    Face directory or hub name). Without ``encoder``, the model starts from random weights of the given ``size``.
    Without ``decoder``, the decoder starts from the encoder's checkpoint. ``checkpoint`` names a whole BERT-NAR-BERT to
    continue from (an exported or imported directory, or a hub name). Its settings then replace the defaults below;
    fields that the recipe sets still win.
    """

    #: a whole BERT-NAR-BERT to continue from: a directory, or a name on the Hugging Face hub
    checkpoint: str | None = None
    #: a checkpoint of BERT, RoBERTa, XLM-R, ELECTRA, DistilBERT or ModernBERT to start the encoder from; default:
    #: random weights
    encoder: str | None = None
    #: such a checkpoint to start the decoder from; default: that of the encoder
    decoder: str | None = None
    #: shape of a model with random weights
    size: ModelSize | None = None
    #: positions to use of both checkpoints: fewer than they have, or more with ``extend_positions``
    max_position_embeddings: Annotated[int, Field(gt=0)] | None = None
    #: layers of the encoder. Of a checkpoint, evenly spaced ones are taken, the first and the last among them; with
    #: ``size``, in the place of its ``num_hidden_layers``. Default: all
    encoder_layers: Annotated[int, Field(gt=0)] | None = None
    #: layers of the decoder, in the same way
    decoder_layers: Annotated[int, Field(gt=0)] | None = None
    #: repeat a checkpoint's position embeddings if it has too few
    extend_positions: bool = False
    #: the decoder shares embeddings, self-attention and feed-forward layers with the encoder
    tie_encoder_decoder: bool = False
    #: numbers of a source token's latent vector, through which everything passes to the decoder
    latent_size: Annotated[int, Field(gt=0)] = 8
    #: dropout of the latent vectors
    latent_dropout: Probability = 0.0
    #: dropout of hidden states
    hidden_dropout: Probability = 0.1
    #: dropout of attention weights
    attention_dropout: Probability = 0.1
    #: source: the number of positions follows the source length; predicted: it follows the target length, which is
    #: predicted by classification
    decoder_length: Literal["source", "predicted"] = "source"
    #: decoder positions = ceil(ratio x real source tokens + offset), clipped to min and max
    decoder_length_ratio: Annotated[float, Field(gt=0)] = 2.0
    #: added to the number of positions
    decoder_length_offset: int = 0
    #: fewest positions
    decoder_length_min: Annotated[int, Field(ge=1)] = 1
    #: most positions; default: no limit but the decoder's position embeddings
    decoder_length_max: Annotated[int, Field(ge=1)] | None = None
    #: absolute: each position has a position embedding of its own; shared: those of a source token share that token's,
    #: and the number of positions has no limit
    decoder_positions: Literal["absolute", "shared"] = "shared"
    #: what reads the positions: ctc; token (one token each, for predicted); dag (paths through a graph of positions);
    #: default: token for predicted, else ctc
    target: Literal["ctc", "token", "dag"] | None = None
    #: with dag: attention heads of the links between positions; default: as the decoder
    link_heads: Annotated[int, Field(gt=0)] | None = None
    #: with dag: most positions of a graph
    link_positions: Annotated[int, Field(ge=2)] = 1024
    #: the input of a position holds a token too, [MASK] where nothing is known; ``glancing`` needs it
    decoder_tokens: bool = False
    #: with decoder_tokens, what a position holds where nothing is known: mask: [MASK]; source: the source token that it
    #: stands for; inserted: that token in its first position, and [MASK] in its others
    slot_tokens: Literal["mask", "source", "inserted"] = "mask"
    #: false: the encoder alone, which reads the source with [MASK]s inserted (kind encoder_ctc)
    has_decoder: bool = True
    #: the input of a position holds a latent; false needs predicted lengths, which then are all that latents serve
    decoder_latent: bool = True
    #: what further passes of decoding predict anew: unsure: the least probable tokens; all: all of them
    refined_tokens: Literal["unsure", "all"] = "unsure"
    #: how the trained model decodes if nothing else is said
    decoding: DecodingSection = DecodingSection()
    #: every decoder layer predicts, the next one reads its prediction, and the loss is the mean of their losses
    deep_supervision: bool = False
    #: with deep_supervision: every n-th layer only, counted from the last one
    deep_supervision_every: Annotated[int, Field(ge=1)] = 1
    #: with dag and infill: every segment has a block of the graph of its own, which no link passes
    segment_blocks: bool = False
    #: standard deviation of new embeddings (words, positions, links' places); default: as all weights. The slots of a
    #: very small graph with random weights begin alike without it
    embedding_range: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    #: with predicted lengths: smallest difference (target minus source tokens) that has its own class
    length_difference_min: int = -128
    #: with predicted lengths: largest difference that has its own class
    length_difference_max: int = 128
    #: with predicted lengths: weight of the length loss, added to the mean token loss
    length_loss_weight: Annotated[float, Field(ge=0)] = 0.1
    #: weight of the smoothing term KL(uniform || p) of each position; ``beta`` in the paper's code
    kl_weight: Annotated[float, Field(ge=0)] = 0.0
    #: sources of two texts: the second has token type 1, as in BERT's own pairs; false: all tokens have type 0
    pair_types: bool = False
    #: token: samples are weighted by their number of target tokens; sample: all weigh the same, as in the paper's code
    loss_reduction: Literal["token", "sample"] = "token"

    @model_validator(mode="after")
    def _one_start(self) -> ModelSection:
        others = [name for name in ("encoder", "decoder", "size") if getattr(self, name) is not None]
        if self.checkpoint is not None and others:
            raise ValueError(f"give checkpoint or {others[0]}, not both: a checkpoint is a whole model")
        if self.max_position_embeddings is not None and self.encoder is None:
            raise ValueError(
                "max_position_embeddings applies to BERT checkpoints; without one set size.max_position_embeddings"
            )
        if self.encoder is not None and self.size is not None:
            raise ValueError("give encoder or size, not both: a checkpoint has its own size")
        if self.decoder is not None and self.encoder is None:
            raise ValueError("decoder needs encoder: name both checkpoints or neither")
        return self
