"""The ASGI application: its routes, its middleware and its error answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError

from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.serve.answers import Generate, as_json
from bnb_ds.serve.batcher import Batcher
from bnb_ds.serve.bodies import BodyLimit
from bnb_ds.serve.limits import ServiceLimits
from bnb_ds.serve.metrics import Metrics
from bnb_ds.serve.pages import add_pages
from bnb_ds.serve.request_log import RequestLog
from bnb_ds.serve.shutdown import Shutdown
from bnb_ds.version import __version__


def build_app(pipeline: BnbPipeline, limits: ServiceLimits) -> FastAPI:
    """Build the service for one pipeline. It reads and writes no files and calls no other services.

    ``app.state`` holds its ``metrics`` and its ``shutdown``.
    """
    metrics, shutdown = Metrics(), Shutdown()
    batcher = Batcher(pipeline, metrics, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    # FastAPI's own documentation pages would load scripts from other hosts.
    app = FastAPI(title="BERT-NAR-BERT", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.metrics, app.state.shutdown = metrics, shutdown
    app.add_middleware(
        BodyLimit, max_bytes=limits.max_body_bytes, timeout_seconds=limits.timeout_seconds, shutdown=shutdown
    )
    app.add_middleware(RequestLog)  # outermost: it also sees what the other refuses
    app.add_exception_handler(RequestValidationError, _malformed)
    Generate(pipeline, batcher, limits, metrics, shutdown).add_to(app)
    add_pages(app, pipeline, batcher, metrics, shutdown)
    return app


async def _malformed(request: Request, error: Exception) -> Response:
    """Answer 422 in one line. The request is not repeated, because it may not even be text."""
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5]]
    return as_json(422, {"detail": "; ".join(faults)})
