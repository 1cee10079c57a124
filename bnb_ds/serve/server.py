"""Run the service: open its socket, and on shutdown answer what it has accepted."""

from __future__ import annotations

import asyncio
import importlib
import logging
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

from bnb_ds.errors import ConfigError, how_to_install
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.serve.limits import ACCEPT_BURST, ServiceLimits

if TYPE_CHECKING:
    import uvicorn

_BACKLOG = 2048  # connections that wait to be accepted
# nginx and Amazon's load balancers close connections that were idle for 60 s. We must wait longer than they do: a
# request that they send while we close the connection is lost.
_KEEP_ALIVE_SECONDS = 75
_LAST_ANSWERS_SECONDS = 2.0  # after the grace, for the answers that say so
_MOST_HEADER_BYTES = 16384


def require_packages() -> None:
    """Raise ConfigError if the extra ``[serve]`` is not installed."""
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise ConfigError(f"serve needs the package {package}: {how_to_install('serve')}") from None


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket; port 0 chooses a free port.

    Raises:
        ConfigError: the address cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio disables Nagle's algorithm only if the protocol is named; otherwise each answer takes 40 ms longer.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError, UnicodeError) as error:  # a port above 65535, a name that none can be
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--host {host} --port {port}: {reason}; give an address of this machine and a free port"
        ) from None
    return bound


def make_server(
    app: Any, limits: ServiceLimits, *, shutdown_seconds: float = 60, http: str | None = None
) -> uvicorn.Server:
    """The server of an application that `bnb_ds.serve.app.build_app` made.

    Args:
        app: the application.
        limits: of its connections.
        shutdown_seconds: longest time for accepted requests after the server is told to end.
        http: ``h11`` or ``httptools``, the parser of requests; None: httptools if it is installed.
    """
    import uvicorn
    from uvicorn.importer import import_from_string

    from bnb_ds.serve.connections import Connections, guarded

    connections = Connections(
        app.state.metrics,
        max_open=limits.max_connections,
        max_per_client=limits.max_connections_per_client,
        header_seconds=limits.header_seconds,
        write_seconds=limits.write_seconds,
    )
    base = import_from_string(uvicorn.config.HTTP_PROTOCOLS[http or "auto"])

    class Server(uvicorn.Server):
        """It gives accepted requests some seconds of grace, and leaves nothing for uvicorn to cancel."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            for bound in sockets or []:  # asyncio accepts as many connections at once as its backlog, which is short
                bound.listen(_BACKLOG)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.shutdown.begin(shutdown_seconds)
            timer = asyncio.get_running_loop().call_later(
                shutdown_seconds + _LAST_ANSWERS_SECONDS, connections.abort_all
            )
            await super().shutdown(sockets)
            timer.cancel()

    config = uvicorn.Config(
        app,
        http=guarded(base, connections),
        ws="none",
        log_level="error",
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(shutdown_seconds + 2 * _LAST_ANSWERS_SECONDS) + 1,
        limit_concurrency=None,
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
        backlog=ACCEPT_BURST,
        server_header=False,
    )
    return Server(config)


def serve(pipeline: BnbPipeline, limits: ServiceLimits, bound: socket.socket, *, shutdown_seconds: int) -> None:
    """Serve until SIGTERM or SIGINT; then refuse new connections, answer accepted requests, and return.

    Args:
        pipeline: the model.
        limits: of the service.
        bound: the socket to listen on.
        shutdown_seconds: longest time for accepted requests after the signal.
    """
    from bnb_ds.serve.app import build_app

    app = build_app(pipeline, limits)
    server = make_server(app, limits, shutdown_seconds=shutdown_seconds)
    host, port = bound.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host

    def end(number: int, frame: object) -> None:
        """Handle a signal that arrives before uvicorn listens, and the one that uvicorn raises again at its end."""
        server.should_exit = True

    bound.listen(_BACKLOG)  # from now on clients can connect, though they may have to wait
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    print(f"serve: {pipeline.engine.name}, http://{host}:{port}, described at /docs", file=sys.stderr, flush=True)
    try:
        server.run(sockets=[bound])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    accepted, answered, gone = app.state.metrics.totals()
    clients = f", {gone} whose clients left" if gone else ""
    print(f"serve: ended; {accepted} requests accepted, {answered} answered{clients}", file=sys.stderr, flush=True)


def log_requests(*, each: bool) -> None:
    """Write the warnings of the service to standard error, and one line for each request if asked for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("bnb_ds.serve")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if each else logging.WARNING)
    logger.propagate = False
