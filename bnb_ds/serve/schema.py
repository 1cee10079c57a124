"""Requests and answers of the service, and the page that documents them."""

from __future__ import annotations

import html
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator


class RequestOptions(BaseModel):
    """Fields of `bnb_ds.decoding.options.DecodeOptions`. The default of a field is the service's setting."""

    model_config = ConfigDict(extra="forbid", strict=True)

    beam_size: int | None = Field(None, ge=1, le=32, description="beam size of the CTC search; 1: greedy")
    length_beam: int | None = Field(
        None, ge=1, le=32, description="number of lengths to try, with length classification"
    )
    min_length: int | None = Field(None, ge=0, le=4096, description="fewest tokens of an output")
    max_length: int | None = Field(None, ge=1, le=4096, description="most tokens of an output")
    no_repeat_ngram_size: int | None = Field(
        None, ge=0, le=64, description="no n-gram of this many tokens twice; 0: no such rule"
    )


class GenerateRequest(BaseModel):
    """Texts to generate from."""

    model_config = ConfigDict(extra="forbid", strict=True)

    texts: list[str] = Field(min_length=1, description="one output is generated for each, in this order")
    options: RequestOptions = Field(default_factory=RequestOptions)
    return_scores: bool = Field(False, description="compute log-probabilities")

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


class OutputItem(BaseModel):
    """The output for one text."""

    text: str
    score: float | None = Field(None, description="log-probability of the output in nats, if requested")
    num_source_tokens: int = Field(description="tokens of the text; 0 for an empty text, whose output is empty")
    is_truncated: bool = Field(description="whether the text was cut because it was too long for the model")


class GenerateResponse(BaseModel):
    """Outputs in the order of the texts."""

    outputs: list[OutputItem]


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str


def page(description: dict[str, Any]) -> str:
    """Render an OpenAPI description as one HTML page that loads nothing from other hosts."""
    rows = []
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            codes = "".join(
                f"<li><code>{html.escape(code)}</code> {html.escape(answer['description'])}</li>"
                for code, answer in sorted(operation["responses"].items())
            )
            about = html.escape(operation.get("description", operation.get("summary", "")))
            rows.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{about}</p><ul>{codes}</ul>")
    schemas = html.escape(json.dumps(description.get("components", {}).get("schemas", {}), indent=2))
    title = html.escape(description["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>'
        f'<p>Machine-readable: <a href="openapi.json">openapi.json</a></p>{"".join(rows)}'
        f"<h2>Schemas</h2><pre>{schemas}</pre></html>"
    )
