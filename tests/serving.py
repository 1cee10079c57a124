"""The service in a thread of a test, on a free port, and a model whose speed the test decides."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.serve.app import build_app
from bnb_ds.serve.limits import ServiceLimits
from bnb_ds.serve.server import listen, make_server


class SlowPipeline(BnbPipeline):
    """A pipeline that waits for a signal. Call `hold` once; then no batch is decoded until ``may_go`` is set."""

    def hold(self) -> None:
        self.may_go = threading.Event()
        self.decoded: list[list[int]] = []  # the sources of all batches, in their order
        self.num_calls = 0

    def from_sources(self, sources, *arguments, **options):
        self.num_calls += 1
        self.may_go.wait(30)
        self.decoded += sources
        return super().from_sources(sources, *arguments, **options)

    def wait_for_calls(self, number: int) -> None:
        """Wait until this many batches have been begun."""
        end = time.monotonic() + 30
        while self.num_calls < number:
            assert time.monotonic() < end, f"{self.num_calls} batches"
            time.sleep(0.005)


@contextmanager
def running(
    pipeline: BnbPipeline, *, http: str | None = None, shutdown_seconds: float = 30, **limits: Any
) -> Iterator[httpx.Client]:
    """Run the service, and yield a client of it.

    Args:
        pipeline: the model.
        http: ``h11`` or ``httptools``; None: as the command chooses.
        shutdown_seconds: the grace at the end.
        limits: fields of `ServiceLimits`.
    """
    given = ServiceLimits(**limits)
    bound = listen("127.0.0.1", 0)
    server = make_server(build_app(pipeline, given), given, shutdown_seconds=shutdown_seconds, http=http)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        with httpx.Client(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}", timeout=60) as client:
            client.server = server  # a test may tell it to end
            yield client
    finally:
        server.should_exit = True
        thread.join()
        bound.close()
