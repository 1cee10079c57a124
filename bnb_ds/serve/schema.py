"""Requests and answers of the service."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from bnb_ds.dag.strategies import HIGHEST_PENALTY, STRATEGIES


class RequestOptions(BaseModel):
    """How outputs are chosen. A field that is left out has the service's own setting."""

    model_config = ConfigDict(extra="forbid", strict=True)

    # The service's own limit says how large these two may be.
    beam_size: int | None = Field(None, ge=1, description="beam size of the CTC search; 1: greedy")
    length_beam: int | None = Field(None, ge=1, description="number of lengths to try, with length classification")
    min_length: int | None = Field(None, ge=0, le=4096, description="fewest tokens of an output")
    max_length: int | None = Field(None, ge=1, le=4096, description="most tokens of an output")
    refinement: int | None = Field(
        None, ge=0, le=32, description="passes of the decoder behind the first one, for models with decoder_tokens"
    )
    no_repeat_ngram_size: int | None = Field(
        None, ge=0, le=64, description="no n-gram of this many tokens twice; 0: no such rule"
    )
    exit_entropy: float | None = Field(
        None, ge=0, le=100, description="nats below which a slot is sure, for models with deep_supervision"
    )
    blank_penalty: float | None = Field(
        None, ge=-100, le=100, description="nats by which the CTC blank is lowered, for longer outputs"
    )
    strategy: str | None = Field(
        None, max_length=32, description=f"how a path through a graph of slots is chosen: {', '.join(STRATEGIES)}"
    )
    lookahead_beta: float | None = Field(
        None, ge=0, le=100, description="weight of the next slot's best token, of strategy lookahead"
    )
    length_penalty: float | None = Field(
        None,
        ge=0,
        le=HIGHEST_PENALTY,
        description="power of the length that divides the log-probability of a path; more favours longer outputs",
    )
    merge_duplicates: bool | None = Field(None, description="whether equal neighbours become one, in a graph")
    temperature: float | None = Field(None, gt=0, le=100, description="of strategy sample; below 1: likelier outputs")
    top_p: float | None = Field(None, gt=0, le=1, description="probability that is drawn from, of strategy sample")
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="of strategy sample; the same seed gives the same output"
    )


class GenerateRequest(BaseModel):
    """Texts to generate from."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"texts": ["A first text.", "A second text."]}]}
    )

    texts: list[str] = Field(
        min_length=1,
        description="one output is generated for each, in this order; a tab divides the texts of a task that reads two",
    )
    options: RequestOptions = Field(default_factory=RequestOptions, description="how outputs are chosen")
    return_scores: bool = Field(False, description="compute log-probabilities")
    return_slots: bool = Field(False, description="say how each decoder slot was read; only with the torch model")

    @field_validator("texts")
    @classmethod
    def _are_text(cls, texts: list[str]) -> list[str]:
        """Refuse lone surrogates: JSON can encode them, but they are only half of a character."""
        for number, text in enumerate(texts):
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(f"text {number} holds half of a character: send whole ones") from None
        return texts


class Slot(BaseModel):
    """One decoder slot, and how it was read."""

    token: str | None = Field(description="the token that the slot stands for; null: the blank")
    writes: int | None = Field(
        description="place of the token in the output; null: a blank, or a repeat of the slot before"
    )
    probability: float = Field(description="probability of the token, or of the blank")
    candidates: list[tuple[str | None, float]] = Field(description="most probable tokens; null: the blank")


class OutputItem(BaseModel):
    """The output for one text."""

    text: str = Field(description="the output on one line")
    score: float | None = Field(
        None, description="log-probability of the output in nats, if requested; null also for one that has none"
    )
    num_source_tokens: int = Field(description="tokens of the text; 0 for an empty text, whose output is empty")
    is_truncated: bool = Field(description="whether the text was cut because it was too long for the model")
    queue_ms: float = Field(description="milliseconds that the text waited for a batch")
    model_ms: float = Field(description="milliseconds that the model took for the batch of the text")
    slots: list[Slot] | None = Field(None, description="the decoder's slots, if requested")


class GenerateResponse(BaseModel):
    """Outputs in the order of the texts."""

    outputs: list[OutputItem] = Field(description="one for each text")


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str = Field(description="the fault and the way out, in one line")
