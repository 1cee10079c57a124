"""``POST /generate``: from a request to its outputs, at once as JSON or one by one as NDJSON."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.serve.batcher import Answer, Batcher, Overloaded, Work
from bnb_ds.serve.limits import ServiceLimits
from bnb_ds.serve.metrics import Metrics
from bnb_ds.serve.request_log import CLIENT_GONE
from bnb_ds.serve.schema import GenerateRequest, GenerateResponse, OutputItem, Problem, Slot
from bnb_ds.serve.shutdown import ClientGone, Shutdown, Stopping, disconnected, unless
from bnb_ds.serve.slot_reading import require_slots

NDJSON = "application/x-ndjson"
_RETRY_SECONDS = 0.05

ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the outputs; with the header Accept: application/x-ndjson, one line for each, as they are done",
        "content": {NDJSON: {"schema": {"type": "string"}}},
    },
    400: {"model": Problem, "description": "the body is not JSON, or the model does not support the options or texts"},
    408: {"model": Problem, "description": "the body arrived too slowly"},
    413: {"model": Problem, "description": "the body is too large, or has too many texts"},
    415: {"model": Problem, "description": "the content type is not application/json"},
    422: {"model": Problem, "description": "the request does not have the form described here"},
    429: {"model": Problem, "description": "too many texts are pending: try again after Retry-After"},
    503: {"model": Problem, "description": "the service ends: try again after Retry-After"},
    504: {"model": Problem, "description": "the answer took too long"},
}


def as_json(status: int, body: dict[str, Any]) -> Response:
    """Encode as ASCII, so that a lone surrogate in a key cannot break the answer."""
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return Response(json.dumps(body), status, headers, media_type="application/json")


class Generate:
    """The route ``POST /generate``."""

    def __init__(
        self, pipeline: BnbPipeline, batcher: Batcher, limits: ServiceLimits, metrics: Metrics, shutdown: Shutdown
    ):
        self._pipeline = pipeline
        self._batcher = batcher
        self._limits = limits
        self._metrics = metrics
        self._shutdown = shutdown

    def add_to(self, app: FastAPI) -> None:
        """Add the route."""

        @app.post("/generate", response_model=GenerateResponse, responses=ANSWERS)
        async def generate(request: Request, body: GenerateRequest) -> Response:
            """Write one output for each text."""
            self._metrics.accepted.inc()
            facts = request.state.facts
            facts["texts"] = len(body.texts)
            streams = NDJSON in request.headers.get("accept", "").lower()
            most = self._limits.max_stream_items if streams else self._limits.max_items
            if len(body.texts) > most:
                return self._refused(413, f"{len(body.texts)} texts: send at most {most} in one request")
            try:
                work = self._work(body)
                self._pipeline.reader.check(body.texts)
            except (ConfigError, DataError) as error:
                return self._refused(400, " ".join(str(error).split()))
            if streams:
                return await self._stream(request, body.texts, work)
            return await self._whole(request, body.texts, work)

    def _work(self, body: GenerateRequest) -> Work:
        given = body.options.model_dump(exclude_none=True)
        for name in ("beam_size", "length_beam"):
            if given.get(name, 1) > self._limits.max_beam_size:
                raise ConfigError(f"{name} is {given[name]}: this service allows at most {self._limits.max_beam_size}")
        options = DecodeOptions.of(self._pipeline.options, given)
        if options.num_hypotheses > max(self._limits.max_beam_size, self._pipeline.options.num_hypotheses):
            raise ConfigError(
                f"strategy {options.strategy} follows {options.num_hypotheses} outputs: this service allows at most"
                f" {self._limits.max_beam_size}; give beam_size too"
            )
        self._pipeline.engine.check(options, with_scores=body.return_scores)
        if body.return_slots:
            require_slots(self._pipeline.engine)
        return Work(options, body.return_scores, body.return_slots)

    def _refused(self, status: int, detail: str, reason: str | None = None) -> Response:
        self._metrics.requests.labels(str(status)).inc()
        if reason is not None:
            self._metrics.dropped.labels(reason).inc()
        return as_json(status, {"detail": detail})

    def _failed(self, error: Exception, request: Request) -> Response:
        """The answer of a request that fails before any of it is sent."""
        facts = request.state.facts
        if isinstance(error, ClientGone):
            self._metrics.dropped.labels("client_gone").inc()
            facts.update(status=CLIENT_GONE, dropped="client_gone")
            return Response(status_code=CLIENT_GONE)  # it reaches nobody
        status, detail, facts["dropped"] = self._reason(error, request)
        return self._refused(status, detail, facts["dropped"])

    async def _whole(self, request: Request, texts: list[str], work: Work) -> Response:
        facts, start = request.state.facts, time.monotonic()

        async def answers() -> list[Answer]:
            async with self._batcher.accepted(texts, work, _client(request)) as futures:
                return await asyncio.gather(*futures)

        ends = [disconnected(request.receive), self._shutdown.grace_over()]
        try:
            done = await unless(answers(), self._limits.timeout_seconds, ends)
        except Exception as error:
            return self._failed(error, request)
        finally:
            self._metrics.request_seconds.observe(time.monotonic() - start)
            facts["queue"] = self._batcher.num_waiting
        self._count(done, facts)
        self._metrics.requests.labels("200").inc()
        items = [_item(answer) for answer in done]
        return as_json(200, {"outputs": items})

    async def _stream(self, request: Request, texts: list[str], work: Work) -> Response:
        """Lines of JSON. What goes wrong before the first line is an error answer, and later the last line."""
        start = time.monotonic()
        lines = self._lines(request, texts, work)
        try:
            first = await unless(anext(lines), None, [disconnected(request.receive)])
        except Exception as error:
            return self._failed(error, request)

        async def all_lines() -> AsyncIterator[str]:
            facts = request.state.facts
            reason: str | None = "client_gone"
            try:
                yield first
                async for line in lines:
                    yield line
                reason = None
            except Exception as error:
                _, detail, reason = self._reason(error, request)
                yield json.dumps({"detail": detail}) + "\n"
            finally:
                # A client that leaves ends this function where it yields or waits.
                await lines.aclose()
                facts["queue"] = self._batcher.num_waiting
                self._metrics.request_seconds.observe(time.monotonic() - start)
                if reason is not None:
                    self._metrics.dropped.labels(reason).inc()
                    facts["dropped"] = reason
                if reason != "client_gone":
                    self._metrics.requests.labels("200").inc()

        return StreamingResponse(all_lines(), media_type=NDJSON, headers={"X-Accel-Buffering": "no"})

    async def _lines(self, request: Request, texts: list[str], work: Work) -> AsyncGenerator[str, None]:
        """One line for each text, in order. At most ``max_items`` of them are in the queue at a time."""
        size = self._limits.max_items
        for begin in range(0, len(texts), size):
            deadline = time.monotonic() + self._limits.timeout_seconds
            part = texts[begin : begin + size]
            while True:
                try:
                    async with self._batcher.accepted(part, work, _client(request)) as futures:
                        for place, future in enumerate(futures):
                            answer = await self._before(deadline, future)
                            self._count([answer], request.state.facts)
                            yield json.dumps({"index": begin + place, **_item(answer)}) + "\n"
                    break
                except Overloaded:
                    if begin == 0 or time.monotonic() > deadline:
                        raise
                await asyncio.sleep(_RETRY_SECONDS)

    async def _before(self, deadline: float, future: asyncio.Future[Answer]) -> Answer:
        if future.done():
            return future.result()
        return await unless(future, max(deadline - time.monotonic(), 0), [self._shutdown.grace_over()])

    def _count(self, answers: list[Answer], facts: dict[str, Any]) -> None:
        self._metrics.items.inc(len(answers))
        self._metrics.truncated.inc(sum(answer.generated.is_truncated for answer in answers))
        for name, values in {
            "source_tokens": [answer.generated.num_source_tokens for answer in answers],
            "output_tokens": [len(answer.generated.tokens) for answer in answers],
        }.items():
            facts[name] = facts.get(name, 0) + sum(values)
        for name, seconds in {
            "queue_ms": max(answer.queue_seconds for answer in answers),
            "model_ms": max(answer.model_seconds for answer in answers),
        }.items():
            facts[name] = f"{max(1e3 * seconds, float(facts.get(name, 0))):.1f}"
        facts["batch"] = max(facts.get("batch", 0), *(answer.batch_size for answer in answers))

    def _reason(self, error: Exception, request: Request) -> tuple[int, str, str]:
        """Status, detail and reason of a request that fails."""
        if isinstance(error, Overloaded):
            return 429, "too many texts are pending: try again", "overloaded"
        if isinstance(error, Stopping):
            return 503, "the service ends: try again", "stopping"
        if isinstance(error, asyncio.TimeoutError):
            return 504, f"not done within {self._limits.timeout_seconds} seconds: send fewer texts", "deadline"
        # Our own fault: it is logged, the client gets no details, and its connection stays open.
        logging.getLogger(__name__).error("request %s failed", request.state.request_id, exc_info=error)
        return 500, "the model failed on this request", "fault"


def _client(request: Request) -> tuple[str, int]:
    return (request.client.host, request.client.port) if request.client else ("", 0)


def _item(answer: Answer) -> dict[str, Any]:
    output = answer.generated
    slots = None
    if answer.slots is not None:
        slots = [
            Slot(token=slot.token, writes=slot.writes, probability=slot.probability, candidates=slot.candidates)
            for slot in answer.slots
        ]
    has_score = output.score is not None and math.isfinite(output.score)  # JSON has no infinity
    item = OutputItem(
        text=output.text,
        score=output.score if has_score else None,
        num_source_tokens=output.num_source_tokens,
        is_truncated=output.is_truncated,
        slots=slots,
        queue_ms=round(1e3 * answer.queue_seconds, 3),
        model_ms=round(1e3 * answer.model_seconds, 3),
    )
    return item.model_dump(exclude={"slots"} if slots is None else None)
