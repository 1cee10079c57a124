"""Run the service: open its socket, and on shutdown answer all accepted requests."""

from __future__ import annotations

import importlib
import signal
import socket
import sys

from bnb_ds.errors import ConfigError, how_to_install
from bnb_ds.generate.pipeline import BnbPipeline

_BACKLOG = 2048  # connections that wait to be accepted
# nginx and Amazon's load balancers close connections that were idle for 60 s. We must wait longer than they do: a
# request that they send while we close the connection is lost.
_KEEP_ALIVE_SECONDS = 75


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
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: {error.strerror or error}; give an address of this machine and a free port"
        ) from None
    return bound


def serve(pipeline: BnbPipeline, limits: object, bound: socket.socket, *, shutdown_seconds: int) -> None:
    """Serve until SIGTERM or SIGINT; then refuse new connections, answer accepted requests, and return.

    Args:
        pipeline: the model.
        limits: a `bnb_ds.serve.app.ServiceLimits`.
        bound: the socket to listen on.
        shutdown_seconds: longest time for accepted requests after the signal.
    """
    import uvicorn

    from bnb_ds.serve.app import build_app

    app = build_app(pipeline, limits)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=shutdown_seconds,
        limit_concurrency=None,
        h11_max_incomplete_event_size=16384,
        backlog=_BACKLOG,
        server_header=False,
    )
    server = uvicorn.Server(config)
    host, port = bound.getsockname()[:2]

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
    metrics = app.state.metrics
    answered = sum(sample.value for sample in metrics.requests.collect()[0].samples if sample.name.endswith("_total"))
    accepted = next(s.value for s in metrics.accepted.collect()[0].samples if s.name.endswith("_total"))
    print(f"serve: ended; {accepted:.0f} requests accepted, {answered:.0f} answered", file=sys.stderr, flush=True)
