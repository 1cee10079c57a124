"""How work ends early: time runs out, its client leaves, or the service has to end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

BODY_GRACE_SECONDS = 5.0


class ClientGone(Exception):
    """The client has closed its connection, so nobody waits for the answer."""


class Stopping(Exception):
    """The service ends, and the grace for accepted requests is over."""


class Shutdown:
    """The end of one service: it begins with a signal, and some seconds of grace follow.

    Requests whose bodies are whole have the full grace. Bodies that are still arriving have `BODY_GRACE_SECONDS`, so
    that a slow one does not hold up the end.

    Attributes:
        has_begun: whether the signal has come. The service is then no longer ready for new requests.
    """

    def __init__(self) -> None:
        self.has_begun = False
        self._grace_is_over = asyncio.Event()
        self._bodies_are_over = asyncio.Event()

    def begin(self, grace_seconds: float) -> None:
        """Begin the grace. Call it in the event loop."""
        self.has_begun = True
        loop = asyncio.get_running_loop()
        loop.call_later(grace_seconds, self._grace_is_over.set)
        loop.call_later(min(grace_seconds, BODY_GRACE_SECONDS), self._bodies_are_over.set)

    async def grace_over(self) -> None:
        """Wait for the end of the grace.

        Raises:
            Stopping: always.
        """
        await self._grace_is_over.wait()
        raise Stopping

    async def body_grace_over(self) -> None:
        """Wait for the end of the grace for bodies.

        Raises:
            Stopping: always.
        """
        await self._bodies_are_over.wait()
        raise Stopping


async def disconnected(receive: Any) -> None:
    """Wait until the client of an ASGI request leaves; its body has been read.

    Raises:
        ClientGone: always.
    """
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone


async def unless(work: Awaitable[T], timeout_seconds: float | None, ends: Sequence[Coroutine[Any, Any, None]]) -> T:
    """The result of ``work``, unless something ends it first. It is then cancelled, and has ended on return.

    Args:
        work: what to do.
        timeout_seconds: longest time for it; None: any.
        ends: each raises an exception when the work is to end.

    Raises:
        asyncio.TimeoutError: time ran out.
        Exception: that of the work, or of the first of ``ends``.
    """
    task = asyncio.ensure_future(work)
    watchers = [asyncio.ensure_future(end) for end in ends]
    try:
        await asyncio.wait([task, *watchers], timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        for watcher in watchers:
            if watcher.done():
                watcher.result()
        raise asyncio.TimeoutError
    finally:
        for other in (task, *watchers):
            other.cancel()
        await asyncio.gather(task, *watchers, return_exceptions=True)
