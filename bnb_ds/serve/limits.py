"""Middleware that reads whole bodies within limits of size and time, before the application sees a request."""

from __future__ import annotations

import asyncio
import json
from typing import Any


class BodyLimit:
    """ASGI middleware: too large a body gets 413 and too slow a body gets 408, whatever its headers claim.

    Args:
        app: the application.
        max_bytes: size of the largest body.
        timeout_seconds: longest time for a whole body to arrive.
    """

    def __init__(self, app: Any, *, max_bytes: int, timeout_seconds: float):
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > self._max_bytes:
            await _refuse(send, 413, f"the body has more than {self._max_bytes} bytes: send fewer texts")
            return
        try:
            body, is_whole = await asyncio.wait_for(self._read(receive), self._timeout_seconds)
        except asyncio.TimeoutError:
            await _refuse(send, 408, f"the body did not arrive within {self._timeout_seconds} seconds")
            return
        if body is None:
            return  # the client has disconnected
        if not is_whole:
            await _refuse(send, 413, f"the body has more than {self._max_bytes} bytes: send fewer texts")
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, receive: Any) -> tuple[bytes | None, bool]:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None, False
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_bytes:
                return b"", False
            if not message.get("more_body", False):
                return b"".join(parts), True


def _replay(body: bytes, receive: Any) -> Any:
    """The ``receive`` function of a request whose body has already been read."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> dict[str, Any]:
        return messages.pop() if messages else await receive()

    return replayed


async def _refuse(send: Any, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # The rest of the body is not read, so the connection cannot be reused.
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
