"""The metrics of the service, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one service in a registry of its own, so that one process can run several services."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("bnb_requests", "Answered requests of /generate", ["status"], registry=registry)
        self.accepted = Counter("bnb_accepted", "Requests of /generate whose body was read", registry=registry)
        self.items = Counter("bnb_items", "Texts of well-formed requests", registry=registry)
        self.truncated = Counter("bnb_truncated", "Texts that were longer than the model reads", registry=registry)
        self.source_tokens = Counter("bnb_source_tokens", "Tokens read", registry=registry)
        self.output_tokens = Counter("bnb_output_tokens", "Tokens written", registry=registry)
        self.pending = Gauge("bnb_pending", "Texts that wait or are being decoded", registry=registry)
        self.batch_items = Histogram("bnb_batch_items", "Texts of a batch", buckets=_ITEMS, registry=registry)
        self.queue_seconds = Histogram(
            "bnb_queue_seconds", "Seconds that a text waited", buckets=_SECONDS, registry=registry
        )
        self.model_seconds = Histogram(
            "bnb_model_seconds", "Seconds to decode a batch", buckets=_SECONDS, registry=registry
        )
        self.request_seconds = Histogram(
            "bnb_request_seconds", "Seconds to answer a well-formed request", buckets=_SECONDS, registry=registry
        )

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
