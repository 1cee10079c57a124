"""Open connections: deadlines for those that never finish, and caps that nobody can use up.

A connection *waits* while it has no whole request: it is idle, or its headers or body are still arriving. When a cap is
reached, the connection that has waited longest is closed, so a new client gets in. Only if every connection has a
request to be answered, a new one is refused.
"""

from __future__ import annotations

import asyncio
import http
import json
from typing import Any

from bnb_ds.serve.metrics import Metrics

_MOST_HEADER_BYTES = 65536  # h11 has its own limit, httptools none
_LINGER_SECONDS = 2.0  # for the last bytes of a connection that we close


class Connections:
    """All open connections of one service.

    Args:
        metrics: counters of the service.
        max_open: most open connections.
        max_per_client: most open connections of one address.
        header_seconds: longest time from accept, or from the first byte of a further request, to the end of the
            headers.
        write_seconds: longest time in which a client reads nothing of an answer that waits for it.
    """

    def __init__(
        self, metrics: Metrics, *, max_open: int, max_per_client: int, header_seconds: float, write_seconds: float
    ):
        self.header_seconds = header_seconds
        self.write_seconds = write_seconds
        self._metrics = metrics
        self._max_open = max_open
        self._max_per_client = max_per_client
        self._open: dict[Any, str] = {}  # connection -> address
        self._waiting: dict[Any, None] = {}  # the one that has waited longest comes first
        self._of_client: dict[str, dict[Any, None]] = {}  # those that wait stand in the same order

    def admit(self, connection: Any, client: str) -> bool:
        """Count a new connection, and say whether it may stay. It takes the place of one that waits, if need be."""
        of_client = self._of_client.get(client, {})
        has_room = True
        if len(of_client) >= self._max_per_client:
            has_room = self._give_way(next((other for other in of_client if other in self._waiting), None))
        elif len(self._open) >= self._max_open:
            has_room = self._give_way(next(iter(self._waiting), None))
        self._open[connection] = client
        # The one that gave way may have been the last of this client, so its entry may be new.
        self._of_client.setdefault(client, {})[connection] = self._waiting[connection] = None
        self._metrics.connections.set(len(self._open))
        if not has_room:
            self._metrics.closed_connections.labels("refused").inc()
        return has_room

    def note(self, connection: Any, *, is_waiting: bool) -> None:
        """Note whether a connection waits. It counts as waiting from now on, if it did not wait before."""
        if connection not in self._open:
            return
        if is_waiting and connection not in self._waiting:
            of_client = self._of_client[self._open[connection]]
            del of_client[connection]
            self._waiting[connection] = of_client[connection] = None  # behind those that wait already
        elif not is_waiting:
            self._waiting.pop(connection, None)

    def closed(self, connection: Any, reason: str) -> None:
        """Count a connection that the service closes."""
        self._metrics.closed_connections.labels(reason).inc()
        self.forget(connection)

    def forget(self, connection: Any) -> None:
        """Stop counting a connection. It may be forgotten already."""
        client = self._open.pop(connection, None)
        self._waiting.pop(connection, None)
        if client is not None:
            of_client = self._of_client[client]
            del of_client[connection]
            if not of_client:
                del self._of_client[client]
        self._metrics.connections.set(len(self._open))

    def abort_all(self) -> None:
        """Close all connections at once, with what they still have to send."""
        for connection in list(self._open):
            connection.transport.abort()

    def _give_way(self, connection: Any | None) -> bool:
        if connection is None:
            return False
        self.closed(connection, "gave_way")
        connection.transport.abort()
        return True


class GuardedProtocol:
    """Mixin for uvicorn's HTTP protocols: it keeps the rules of `Connections`. `guarded` makes the class."""

    guard: Connections
    transport: Any
    cycle: Any
    loop: asyncio.AbstractEventLoop
    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _num_bytes = 0  # of headers, as far as they have arrived

    def connection_made(self, transport: Any) -> None:
        """Admit or refuse the connection, and start the deadline of its headers."""
        super().connection_made(transport)  # type: ignore[misc]
        peer = transport.get_extra_info("peername")
        if not self.guard.admit(self, str(peer[0]) if isinstance(peer, tuple) else ""):
            self._end(503, "too many connections are open: try again", "Retry-After: 1\r\n")
            return
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Parse the data, and see how far the request has come."""
        self._num_bytes += len(data)
        super().data_received(data)  # type: ignore[misc]
        self._see()
        if self._has_request() or self.transport.is_closing():
            return
        if self._num_bytes > _MOST_HEADER_BYTES:
            self.guard.closed(self, "refused")
            self._end(431, f"the headers have more than {_MOST_HEADER_BYTES} bytes")
        elif self._header_timer is None:
            self._await_headers()  # the first part of a further request

    def on_response_complete(self) -> None:
        """Let the connection wait again."""
        super().on_response_complete()  # type: ignore[misc]
        self._num_bytes = 0
        self._see()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._cancel("_header_timer")
        self._cancel("_write_timer")
        self.guard.forget(self)
        super().connection_lost(exc)  # type: ignore[misc]

    def pause_writing(self) -> None:
        """Start the deadline of a client that does not read."""
        super().pause_writing()  # type: ignore[misc]
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.guard.write_seconds, self._unread)

    def resume_writing(self) -> None:
        """End that deadline."""
        self._cancel("_write_timer")
        super().resume_writing()  # type: ignore[misc]

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, even if its client never reads the last answer."""
        super().timeout_keep_alive_handler()  # type: ignore[misc]
        self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _see(self) -> None:
        has_request = self._has_request()
        self.guard.note(self, is_waiting=not has_request or self.cycle.more_body)
        if has_request:
            self._cancel("_header_timer")

    def _await_headers(self) -> None:
        if not self.transport.is_closing():
            self._header_timer = self.loop.call_later(self.guard.header_seconds, self._late)

    def _late(self) -> None:
        self._header_timer = None
        if self._has_request() or self.transport.is_closing():
            return
        self.guard.closed(self, "late_headers")
        if self._num_bytes:
            self._end(408, f"the headers did not arrive within {self.guard.header_seconds} seconds")
        else:
            self.transport.abort()

    def _unread(self) -> None:
        self._write_timer = None
        self.guard.closed(self, "unread_answer")
        self.transport.abort()

    def _end(self, status: int, detail: str, header: str = "") -> None:
        """Answer without a request, and close."""
        body = json.dumps({"detail": detail})
        self.transport.write(
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{header}connection: close\r\n\r\n"
            f"{body}".encode()
        )
        self.transport.close()
        self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def _cancel(self, name: str) -> None:
        timer = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)


def guarded(base: type[asyncio.Protocol], connections: Connections) -> type[asyncio.Protocol]:
    """One of uvicorn's HTTP protocols, h11 or httptools, under the rules of ``connections``."""
    return type(f"Guarded{base.__name__}", (GuardedProtocol, base), {"guard": connections})
