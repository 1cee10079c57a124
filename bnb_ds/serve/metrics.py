"""The metrics of the service, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_COSTS = (64, 256, 1024, 4096, 16384, 65536)
#: why a request was dropped
DROPPED = ("client_gone", "deadline", "overloaded", "stopping", "fault")
#: why the service closed a connection
CLOSED = ("late_headers", "gave_way", "refused", "unread_answer")


class Metrics:
    """The metrics of one service in a registry of its own, so that one process can run several services."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("bnb_requests", "Answered requests of /generate", ["status"], registry=registry)
        self.accepted = Counter("bnb_accepted", "Requests of /generate whose body was read", registry=registry)
        self.dropped = Counter(
            "bnb_dropped", "Requests of /generate that got no outputs, or not all", ["reason"], registry=registry
        )
        self.items = Counter("bnb_items", "Texts with an output", registry=registry)
        self.truncated = Counter("bnb_truncated", "Texts that were longer than the model reads", registry=registry)
        self.source_tokens = Counter("bnb_source_tokens", "Tokens read", registry=registry)
        self.output_tokens = Counter("bnb_output_tokens", "Tokens written", registry=registry)
        self.pending = Gauge("bnb_pending", "Texts that wait or are being decoded", registry=registry)
        self.queue_length = Gauge("bnb_queue_length", "Texts that wait for a batch", registry=registry)
        self.connections = Gauge("bnb_connections", "Open connections", registry=registry)
        self.closed_connections = Counter(
            "bnb_closed_connections", "Connections that the service closed early", ["reason"], registry=registry
        )
        self.batch_items = Histogram("bnb_batch_items", "Texts of a batch", buckets=_ITEMS, registry=registry)
        self.batch_cost = Histogram(
            "bnb_batch_cost", "Source tokens and slots of a batch, times the beam", buckets=_COSTS, registry=registry
        )
        self.queue_seconds = Histogram(
            "bnb_queue_seconds", "Seconds that a text waited", buckets=_SECONDS, registry=registry
        )
        self.model_seconds = Histogram(
            "bnb_model_seconds", "Seconds to decode a batch", buckets=_SECONDS, registry=registry
        )
        self.request_seconds = Histogram(
            "bnb_request_seconds", "Seconds to answer a well-formed request", buckets=_SECONDS, registry=registry
        )
        for reason in DROPPED:  # so that each is 0 and not absent before the first
            self.dropped.labels(reason)
        for reason in CLOSED:
            self.closed_connections.labels(reason)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def totals(self) -> tuple[int, int, int]:
        """Requests accepted, answered, and dropped because their clients left."""
        samples = [sample for metric in self._registry.collect() for sample in metric.samples]

        def total(name: str, **labels: str) -> int:
            return int(sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items()))

        return (
            total("bnb_accepted_total"),
            total("bnb_requests_total"),
            total("bnb_dropped_total", reason="client_gone"),
        )
