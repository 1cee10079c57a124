"""The routes beside ``/generate``: health, readiness, metrics, and the two pages for people."""

from __future__ import annotations

import html
import json
from importlib import resources
from string import Template
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse

from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.serve.answers import as_json
from bnb_ds.serve.batcher import Batcher
from bnb_ds.serve.metrics import Metrics
from bnb_ds.serve.schema import Problem
from bnb_ds.serve.shutdown import Shutdown
from bnb_ds.serve.slot_reading import why_no_slots
from bnb_ds.version import __version__

_HEADERS = {
    # The browser itself refuses anything from another host.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_pages(app: FastAPI, pipeline: BnbPipeline, batcher: Batcher, metrics: Metrics, shutdown: Shutdown) -> None:
    """Add the routes."""
    has_slots = why_no_slots(pipeline.engine) is None
    index = _page("index.html", engine=html.escape(pipeline.engine.name), has_slots=json.dumps(has_slots))

    @app.get("/health", response_description="the process lives")
    async def health() -> dict[str, str]:
        """Say that the process lives and its model is loaded."""
        return {"status": "ok", "engine": pipeline.engine.name, "version": __version__}

    @app.get(
        "/ready",
        response_description="a request would be accepted",
        responses={503: {"model": Problem, "description": "no further requests, for now"}},
    )
    async def ready() -> Response:
        """Say whether a new request would be accepted: the service is not ending, and its queue has room."""
        if shutdown.has_begun:
            return as_json(503, {"detail": "the service ends"})
        if not batcher.has_room:
            return as_json(503, {"detail": "too many texts are pending"})
        return as_json(200, {"status": "ready"})

    text = {"content": {"text/plain": {}}, "description": "all metrics"}

    @app.get("/metrics", response_class=Response, responses={200: text})
    async def prometheus() -> Response:
        """Return counters and histograms in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def start() -> Response:
        return HTMLResponse(index, headers=_HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(describe_service(app.openapi()), headers=_HEADERS)

    # HEAD is not a request of its own in the description: the same answer without its body.
    for path, route in (
        ("/health", health),
        ("/ready", ready),
        ("/metrics", prometheus),
        ("/", start),
        ("/docs", docs),
    ):
        app.add_api_route(path, route, methods=["HEAD"], include_in_schema=False)


def describe_service(description: dict[str, Any]) -> str:
    """Render an OpenAPI description as one HTML page that loads nothing from other hosts."""
    schemas = description.get("components", {}).get("schemas", {})
    requests = "".join(
        _request(method, path, operation)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    )
    forms = "".join(_form(name, schema) for name, schema in schemas.items() if "properties" in schema)
    return _page("docs.html", requests=requests, forms=forms, version=html.escape(description["info"]["version"]))


def _request(method: str, path: str, operation: dict[str, Any]) -> str:
    about = html.escape(operation.get("description", operation.get("summary", "")))
    rows = "".join(
        f"<tr><td><code>{html.escape(code)}</code></td><td>{html.escape(answer['description'])}</td></tr>"
        for code, answer in sorted(operation["responses"].items())
    )
    return (
        f'<section><h3><span class="method">{method.upper()}</span> <code>{html.escape(path)}</code></h3><p>{about}</p>'
        f"<table><thead><tr><th>status</th><th>meaning</th></tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _form(name: str, schema: dict[str, Any]) -> str:
    needed = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{html.escape(field)}</code></td><td>{html.escape(_kind(what))}</td>"
        f"<td>{'yes' if field in needed else ''}</td><td>{html.escape(what.get('description', ''))}</td></tr>"
        for field, what in schema["properties"].items()
    )
    about = html.escape(schema.get("description", ""))
    return (
        f'<section id="{html.escape(name)}"><h3><code>{html.escape(name)}</code></h3><p>{about}</p><table><thead><tr>'
        f"<th>field</th><th>type</th><th>needed</th><th>meaning</th></tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _kind(what: dict[str, Any]) -> str:
    """The type of a field in words."""
    if "$ref" in what:
        return str(what["$ref"]).rpartition("/")[2]
    if "anyOf" in what:
        return " or ".join(_kind(choice) for choice in what["anyOf"])
    if what.get("type") == "array" and "items" in what:
        return f"list of {_kind(what['items'])}"
    if "prefixItems" in what:
        return "(" + ", ".join(_kind(item) for item in what["prefixItems"]) + ")"
    limits = [f"{word} {what[key]:g}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in what]
    return " ".join([str(what.get("type", "anything")), *limits])


def _page(name: str, **values: str) -> str:
    """A page of this folder's ``static``, with its ``${...}`` filled in."""
    text = resources.files("bnb_ds.serve").joinpath("static", name).read_text(encoding="utf-8")
    return Template(text).safe_substitute(values)
