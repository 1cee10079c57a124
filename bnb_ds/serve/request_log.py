"""Request ids, and one line in the log for each request."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

logger = logging.getLogger("bnb_ds.serve.requests")

_GOOD_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
#: paths that are asked every few seconds; their successes are not logged
_QUIET = ("/health", "/ready", "/metrics")
#: clients that left before their answer; no answer with this status is ever sent
CLIENT_GONE = 499


class RequestLog:
    """ASGI middleware: it gives each request an id, returns it as ``X-Request-Id``, and logs the request.

    A client may send its own id (letters, digits and ``._:-``, at most 64). The routes add facts to
    ``request.state.facts``, which follow in the line.
    """

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given.decode() if _GOOD_ID.fullmatch(given) else uuid.uuid4().hex
        facts: dict[str, Any] = {}
        scope.setdefault("state", {}).update(request_id=request_id, facts=facts)
        status = CLIENT_GONE
        start = time.monotonic()

        async def send_with_id(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            status = facts.pop("status", status)
            if status != 200 or scope["path"] not in _QUIET:
                client = (scope.get("client") or ("-",))[0]  # of a proxy's header, which may hold anything
                line = {
                    "request": request_id,
                    "client": _printable(client),
                    "method": scope["method"],
                    "path": _printable(scope["path"]),
                    "status": status,
                    "total_ms": f"{1e3 * (time.monotonic() - start):.1f}",
                    **facts,
                }
                logger.info(" ".join(f"{name}={value}" for name, value in line.items()))


def _printable(text: str) -> str:
    """A path or an address that cannot break the line or forge another one."""
    return "".join(character if "!" <= character <= "~" else "?" for character in text[:200])
