"""Middleware that reads whole bodies within limits of type, size and time, before the application sees a request."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from bnb_ds.serve.shutdown import Shutdown, Stopping, unless

_JSON = "application/json"


class BodyLimit:
    """ASGI middleware: a body must be JSON, small enough and in time, whatever its headers claim.

    A body of another content type gets 415, one that is not UTF-8 gets 400, one that is too large 413, and one that is
    too slow 408. Some seconds after a signal to end, a body that is still arriving gets 503.

    Args:
        app: the application.
        max_bytes: size of the largest body.
        timeout_seconds: longest time for a whole body to arrive.
        shutdown: the end of the service.
    """

    def __init__(self, app: Any, *, max_bytes: int, timeout_seconds: float, shutdown: Shutdown):
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds
        self._shutdown = shutdown

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if scope["method"] == "POST" and (unwanted := unwanted_type(headers.get(b"content-type"))):
            await refuse(
                send,
                415,
                f"the content type is {unwanted}: send JSON, with the header Content-Type: {_JSON} (with curl: "
                f"-H 'Content-Type: {_JSON}')",
            )
            return
        too_large = f"the body has more than {self._max_bytes} bytes: send fewer texts"
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > self._max_bytes:
            await refuse(send, 413, too_large)
            return
        try:
            body, is_whole = await unless(
                self._read(receive), self._timeout_seconds, [self._shutdown.body_grace_over()]
            )
        except asyncio.TimeoutError:
            await refuse(send, 408, f"the body did not arrive within {self._timeout_seconds} seconds")
            return
        except Stopping:
            await refuse(send, 503, "the service ends, and the body has not arrived: try again", (b"retry-after", b"1"))
            return
        if body is None:
            return  # the client has disconnected
        if not is_whole:
            await refuse(send, 413, too_large)
            return
        try:
            body.decode(json.detect_encoding(body), "surrogatepass")  # as it will be read
        except UnicodeDecodeError as error:
            await refuse(send, 400, f"the body is not UTF-8 at byte {error.start}: send JSON in UTF-8")
            return
        await self._app(_as_json(scope), _replay(body, receive), send)

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


def unwanted_type(content_type: bytes | None) -> str | None:
    """A printable content type, if it is not JSON. A body without one is taken for JSON."""
    kind = (content_type or b"").split(b";")[0].strip().lower()
    if not kind or kind == _JSON.encode() or (kind.startswith(b"application/") and kind.endswith(b"+json")):
        return None
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in kind[:80])


def _as_json(scope: dict[str, Any]) -> dict[str, Any]:
    """The scope of a request whose body is JSON even if no header says so."""
    if scope["method"] != "POST" or any(name == b"content-type" and value for name, value in scope["headers"]):
        return scope
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", _JSON.encode())]}


def _replay(body: bytes, receive: Any) -> Any:
    """The ``receive`` function of a request whose body has already been read."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> dict[str, Any]:
        return messages.pop() if messages else await receive()

    return replayed


async def refuse(send: Any, status: int, detail: str, *more: tuple[bytes, bytes]) -> None:
    """Answer without reading the rest of the body. The connection cannot be reused, so it is closed."""
    body = json.dumps({"detail": detail}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
