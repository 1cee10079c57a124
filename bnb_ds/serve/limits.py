"""The limits of a service, and how many connections the machine allows."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from bnb_ds.errors import ConfigError

DEFAULT_MAX_CONNECTIONS = 4096
#: connections that asyncio accepts in one turn of its loop
ACCEPT_BURST = 16
#: turns from the accept of a connection until another one that gave way for it is closed
_TURNS = 5
#: files that the process needs for itself: the model, the log, the event loop
_OWN_FILES = 48
_RESERVED = _OWN_FILES + _TURNS * ACCEPT_BURST


@dataclass(frozen=True)
class ServiceLimits:
    """The limits of a service.

    Attributes:
        max_wait_seconds: how long a request waits for others, to share a batch with them.
        token_budget: a batch is full when its texts cost this many source tokens and slots; each slot of a beam search
            counts once for each prefix.
        max_pending: most texts that wait or are being decoded; further requests get 429.
        max_items: most texts of one request, and most texts of a stream that wait at a time.
        max_stream_items: most texts of a request whose answer is streamed.
        max_beam_size: largest beam_size and length_beam of a request.
        max_body_bytes: largest body of one request.
        timeout_seconds: longest time for the body to arrive, for the answer, and for each part of a stream.
        header_seconds: longest time from the start of a connection, or of a further request, to the end of its headers.
        write_seconds: longest time in which a client reads nothing of an answer that waits for it.
        max_connections: most open connections. At this number, a connection without a whole request gives way.
        max_connections_per_client: most open connections of one address.
    """

    max_wait_seconds: float = 0.005
    token_budget: int = 4096
    max_pending: int = 1024
    max_items: int = 64
    max_stream_items: int = 10_000
    max_beam_size: int = 32
    max_body_bytes: int = 1 << 20
    timeout_seconds: float = 60.0
    header_seconds: float = 10.0
    write_seconds: float = 30.0
    max_connections: int = 512
    max_connections_per_client: int = 256


def connection_caps(in_all: int | None, per_client: int | None) -> tuple[int, int]:
    """The caps on connections, below the limit of open files.

    Args:
        in_all: what the user asks for; None: 4,096, or fewer if the limit of open files is low.
        per_client: what the user asks for; None: half of all.

    Raises:
        ConfigError: more connections than the process may have open files.
    """
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DEFAULT_MAX_CONNECTIONS if open_files == resource.RLIM_INFINITY else open_files - _RESERVED
    if open_files != resource.RLIM_INFINITY and (most < 1 or (in_all is not None and in_all > most)):
        needed = (in_all or 1) + _RESERVED
        raise ConfigError(
            f"--max-connections {in_all or 1} needs {needed} open files, and this process may have {open_files}: "
            f"run `ulimit -n {needed}` first, or give fewer"
        )
    allowed = in_all if in_all is not None else min(most, DEFAULT_MAX_CONNECTIONS)
    return allowed, min(per_client if per_client is not None else max(allowed // 2, 1), allowed)
