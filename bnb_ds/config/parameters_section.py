"""Which weights a fine-tuning run trains, and at which rates: the sections of a recipe, and the names that they use."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from bnb_ds.config.section import Section
from bnb_ds.errors import nearest

#: parts of a model, for ``freeze`` and ``lora.also``
PARTS = {
    "encoder": "all weights of the encoder",
    "decoder": "all weights of the decoder",
    "embeddings": "embeddings of both halves, and the output matrix where it is one with them",
    "cross-attention": "the layers' attention to the source",
    "head": "what is in front of and behind the layers: heads, latents, lengths, links",
}
#: matrices of the layers, for ``lora.targets``
TARGETS = {
    "query": "queries of self- and cross-attention",
    "key": "keys of self- and cross-attention",
    "value": "values of self- and cross-attention",
    "query-key-value": "all three, where a model keeps them in one matrix",
    "attention-output": "the matrix behind the heads of attention",
    "feed-forward": "both matrices of the feed-forward layers",
    "dense": "attention-output and feed-forward, which BERT calls so",
    "self-attention": "all matrices of self-attention",
    "cross-attention": "all matrices of cross-attention",
}


def _known(kind: str, known: dict[str, str]) -> Any:
    def check(names: list[str]) -> list[str]:
        for name in names:
            if name not in known:
                raise ValueError(f"unknown {kind} {name!r}: {nearest(name, known)}")
        return list(dict.fromkeys(names))

    return AfterValidator(check)


Parts = Annotated[list[str], _known("part", PARTS)]


class LoraSection(Section):
    """Low-rank adapters: of each chosen matrix W, W + alpha / rank * B A is used, and only A and B are trained.

    An export holds the sums, and needs no adapters. Needs the package peft (``pip install ".[lora]"``).

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.
    """

    #: rows of A and columns of B
    rank: Annotated[int, Field(gt=0)] = 8
    #: the product B A is multiplied by alpha / rank; default: twice the rank
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    #: probability that an input of A is 0 in training
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    #: matrices that get adapters: query, key, value, query-key-value, attention-output, feed-forward, dense,
    #: self-attention, cross-attention; several names join
    targets: Annotated[list[str], Field(min_length=1), _known("target", TARGETS)] = ["query", "value"]  # noqa: RUF012
    #: parts of the model that are trained beside the adapters: head, embeddings, cross-attention, encoder, decoder
    also: Parts = ["head"]  # noqa: RUF012

    @property
    def scale(self) -> float:
        """What the product of both matrices is multiplied by."""
        return (2 * self.rank if self.alpha is None else self.alpha) / self.rank


class UnfreezingSection(Section):
    """Gradual unfreezing: the heads are trained first, then with them the top layers, and the embeddings last.

    Source: Howard and Ruder, Universal Language Model Fine-tuning for Text Classification, ACL 2018.
    """

    #: steps until the next layers are trained too; give this or ``epochs``
    steps: Annotated[int, Field(gt=0)] | None = None
    #: the same in passes over the training samples
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    #: layers of each half that begin at a time
    layers: Annotated[int, Field(gt=0)] = 1

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> UnfreezingSection:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self

    def interval(self, samples_per_epoch: int, global_batch: int) -> int:
        """Steps between two beginnings."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(round(self.epochs * samples_per_epoch / global_batch), 1)


class ParametersSection(Section):
    """Fields of a recipe that say which weights are trained, and at which rates."""

    #: low-rank adapters; only they and ``lora.also`` are trained. Default: none
    lora: LoraSection | None = None
    #: parts that keep their weights: encoder, decoder, embeddings, cross-attention, head. A weight that two parts share
    #: belongs to both
    freeze: Parts = []  # noqa: RUF012
    #: heads have the peak rate, and each layer below the top this many times the rate of the one above it; each half is
    #: counted from its own top, and embeddings lie below the lowest layer. Default: one rate for all
    layerwise_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    #: gradual unfreezing; default: everything is trained from the first step
    unfreezing: UnfreezingSection | None = None

    @field_validator("freeze")
    @classmethod
    def _something_is_left(cls, freeze: list[str]) -> list[str]:
        if {"encoder", "decoder", "head"} <= set(freeze):
            raise ValueError("encoder, decoder and head are the whole model; leave one of them to train")
        return freeze

    @property
    def trains_all_alike(self) -> bool:
        """Whether all weights are trained from the first step at one rate."""
        return (self.lora, self.freeze, self.layerwise_decay, self.unfreezing) == (None, [], None, None)
