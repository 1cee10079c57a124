"""The ASGI application: its routes, limits and error answers."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse

from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.errors import ConfigError
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.serve.batcher import Batcher, Overloaded
from bnb_ds.serve.limits import BodyLimit
from bnb_ds.serve.metrics import Metrics
from bnb_ds.serve.schema import GenerateRequest, GenerateResponse, OutputItem, Problem, page
from bnb_ds.version import __version__


@dataclass(frozen=True)
class ServiceLimits:
    """The limits of a service.

    Attributes:
        max_wait_seconds: how long a request waits for others, to share a batch with them.
        token_budget: a batch is full when it has this many source tokens.
        max_pending: most texts that wait or are being decoded; further requests get 429.
        max_items: most texts of one request.
        max_body_bytes: largest body of one request.
        timeout_seconds: longest time for the body to arrive, and for the answer.
    """

    max_wait_seconds: float = 0.005
    token_budget: int = 4096
    max_pending: int = 1024
    max_items: int = 64
    max_body_bytes: int = 1 << 20
    timeout_seconds: float = 60.0


_ANSWERS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "the body is not JSON, or the model does not support the options"},
    408: {"model": Problem, "description": "the body arrived too slowly"},
    413: {"model": Problem, "description": "the body is too large, or has too many texts"},
    422: {"model": Problem, "description": "the request does not have the form described here"},
    429: {"model": Problem, "description": "too many texts are pending: try again after Retry-After"},
    504: {"model": Problem, "description": "the answer took too long"},
}


def build_app(pipeline: BnbPipeline, limits: ServiceLimits) -> FastAPI:
    """Build the service for one pipeline. It reads and writes no files and calls no other services."""
    metrics = Metrics()
    batcher = Batcher(
        pipeline,
        metrics,
        max_wait_seconds=limits.max_wait_seconds,
        token_budget=limits.token_budget,
        max_pending=limits.max_pending,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    # FastAPI's own documentation pages would load scripts from other hosts.
    app = FastAPI(title="BERT-NAR-BERT", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.metrics = metrics
    app.add_middleware(BodyLimit, max_bytes=limits.max_body_bytes, timeout_seconds=limits.timeout_seconds)
    app.add_exception_handler(RequestValidationError, _malformed)
    _add_generate(app, pipeline, batcher, limits, metrics)
    _add_pages(app, pipeline, metrics)
    return app


def _add_generate(
    app: FastAPI, pipeline: BnbPipeline, batcher: Batcher, limits: ServiceLimits, metrics: Metrics
) -> None:
    @app.post("/generate", response_model=GenerateResponse, responses=_ANSWERS)
    async def generate(request: GenerateRequest) -> Response:
        """Write one output for each text."""
        metrics.accepted.inc()
        start = time.monotonic()
        status, body = await _answer(request, pipeline, batcher, limits)
        metrics.requests.labels(str(status)).inc()
        metrics.request_seconds.observe(time.monotonic() - start)
        if status == 200:
            metrics.items.inc(len(body["outputs"]))
            metrics.truncated.inc(sum(output["is_truncated"] for output in body["outputs"]))
        return _json(status, body, {"Retry-After": "1"} if status == 429 else None)


async def _answer(
    request: GenerateRequest, pipeline: BnbPipeline, batcher: Batcher, limits: ServiceLimits
) -> tuple[int, dict[str, Any]]:
    if len(request.texts) > limits.max_items:
        return 413, {"detail": f"{len(request.texts)} texts: send at most {limits.max_items} in one request"}
    try:
        options = DecodeOptions.of(pipeline.options, request.options.model_dump(exclude_none=True))
        pipeline.engine.check(options, with_scores=request.return_scores)
    except ConfigError as error:
        return 400, {"detail": " ".join(str(error).split())}
    try:
        outputs = await asyncio.wait_for(
            batcher.submit(request.texts, options, with_scores=request.return_scores), limits.timeout_seconds
        )
    except Overloaded:
        return 429, {"detail": "too many texts are pending: try again"}
    except asyncio.TimeoutError:
        return 504, {"detail": f"not done within {limits.timeout_seconds} seconds: send fewer texts"}
    except Exception:
        # Our own fault: it is logged, the client gets no details, and its connection stays open.
        logging.getLogger(__name__).exception("a request failed")
        return 500, {"detail": "the model failed on this request"}
    items = [
        OutputItem(
            text=output.text,
            score=output.score,
            num_source_tokens=output.num_source_tokens,
            is_truncated=output.is_truncated,
        )
        for output in outputs
    ]
    return 200, GenerateResponse(outputs=items).model_dump()


def _add_pages(app: FastAPI, pipeline: BnbPipeline, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Say that the model is loaded and requests are accepted."""
        return {"status": "ok", "engine": pipeline.engine.name, "version": __version__}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Return counters and histograms in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> str:
        return page(app.openapi())


async def _malformed(request: Request, error: Exception) -> Response:
    """Answer 422 in one line. The request is not repeated, because it may not even be text."""
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5]]
    return _json(422, {"detail": "; ".join(faults)})


def _json(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    """Encode as ASCII, so that a lone surrogate in a key cannot break the answer."""
    return Response(json.dumps(body), status, headers, media_type="application/json")
