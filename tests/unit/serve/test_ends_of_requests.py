"""Requests that end early: clients leave, deadlines pass, and the service is told to end."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import socket
import time

import pytest

httpx = pytest.importorskip("httpx", reason="the extra [serve] is not installed")
pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

from bnb_ds.serve import shutdown  # noqa: E402
from tests.serving import SlowPipeline, running  # noqa: E402

ONE_BY_ONE = {"token_budget": 1, "max_wait_seconds": 0}


@pytest.fixture
def slow(exported):
    pipeline = SlowPipeline.from_pretrained(exported, device="cpu")
    pipeline.hold()
    return pipeline


def metric(client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).rpartition(" ")[2])


def ask_and_leave(client, num_texts: int, accept: str = "*/*") -> None:
    """Send a request, and leave when its texts are in the queue."""
    body = json.dumps({"texts": ["a text"] * num_texts}).encode()
    head = f"POST /generate HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\ncontent-type: application/json\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
        while metric(client, "bnb_pending") < num_texts:
            time.sleep(0.005)
    while metric(client, "bnb_pending") > 0:
        time.sleep(0.005)


@pytest.mark.parametrize("accept", ["*/*", "application/x-ndjson"])
def test_the_work_of_clients_that_have_gone_is_dropped(slow, accept):
    """A storm of retries drains: nothing but the batch in the model is decoded."""
    with running(slow, **ONE_BY_ONE) as client:
        for _ in range(8):
            ask_and_leave(client, 20, accept)
        slow.may_go.set()
        assert client.post("/generate", json={"texts": ["one text"]}).status_code == 200
        assert len(slow.decoded) == 2
        assert metric(client, 'bnb_dropped_total{reason="client_gone"}') == 8
        assert metric(client, "bnb_queue_length") == 0


def test_a_long_request_stops_between_batches_when_its_client_leaves(slow):
    class Leaves(SlowPipeline):
        def from_sources(self, sources, *arguments, **options):
            self.decoded += sources
            if len(self.decoded) == 3:
                self.connection.close()
                time.sleep(0.3)
            return super(SlowPipeline, self).from_sources(sources, *arguments, **options)

    slow.__class__ = Leaves
    body = json.dumps({"texts": ["a text"] * 40}).encode()
    with running(slow, **ONE_BY_ONE) as client:
        slow.connection = socket.create_connection((client.base_url.host, client.base_url.port))
        head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
        slow.connection.sendall(head + b"%d\r\n\r\n" % len(body) + body)
        while metric(client, 'bnb_dropped_total{reason="client_gone"}') == 0:
            time.sleep(0.005)
        assert len(slow.decoded) <= 4


def test_a_deadline_ends_the_work_and_not_only_the_answer(slow):
    with running(slow, timeout_seconds=0.3, **ONE_BY_ONE) as client:
        answer = client.post("/generate", json={"texts": ["a text"] * 30})
        assert answer.status_code == 504
        assert answer.json() == {"detail": "not done within 0.3 seconds: send fewer texts"}
        slow.may_go.set()
        assert client.post("/generate", json={"texts": ["one text"]}).status_code == 200
        assert len(slow.decoded) == 2
        assert metric(client, 'bnb_dropped_total{reason="deadline"}') == 1


def test_a_short_request_overtakes_a_long_one(slow):
    with running(slow, **ONE_BY_ONE) as client, concurrent.futures.ThreadPoolExecutor(2) as pool:
        long = pool.submit(client.post, "/generate", json={"texts": ["a long text"] * 20})
        slow.wait_for_calls(1)
        short = pool.submit(client.post, "/generate", json={"texts": ["short"]})
        while metric(client, "bnb_queue_length") < 20:
            time.sleep(0.005)
        slow.may_go.set()
        assert (long.result().status_code, short.result().status_code) == (200, 200)
    (wanted,), _ = slow.encode(["short"])
    assert slow.decoded.index(wanted) in (1, 2)


def test_at_the_end_accepted_requests_are_answered_within_the_grace(slow, caplog, capfd):
    with (
        caplog.at_level(logging.INFO),
        running(slow, shutdown_seconds=1, **ONE_BY_ONE) as client,
        concurrent.futures.ThreadPoolExecutor(4) as pool,
        socket.create_connection((client.base_url.host, client.base_url.port)) as slow_body,
    ):
        slow_body.sendall(
            b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        )
        first = pool.submit(client.post, "/generate", json={"texts": ["first"]})
        slow.wait_for_calls(1)
        others = [pool.submit(client.post, "/generate", json={"texts": ["other"] * n}) for n in (1, 2)]
        others.append(
            pool.submit(client.post, "/generate", json={"texts": ["x"]}, headers={"Accept": "application/x-ndjson"})
        )
        while metric(client, "bnb_pending") < 5:
            time.sleep(0.005)

        class OneMore(SlowPipeline):
            def from_sources(self, sources, *arguments, **options):
                self.may_go.clear()
                return super().from_sources(sources, *arguments, **options)

        slow.__class__ = OneMore  # from now on, each batch takes longer than the grace
        client.server.should_exit = True
        time.sleep(0.3)
        slow.may_go.set()
        assert first.result().status_code == 200
        for other in others:
            answer = other.result()
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json() == {"detail": "the service ends: try again"}
        answer = slow_body.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"the service ends, and the body has not arrived: try again" in answer
        slow.may_go.set()
    assert "Traceback" not in capfd.readouterr().err
    assert not [record for record in caplog.records if record.exc_info]


def test_a_slow_body_does_not_hold_up_the_end(slow, monkeypatch):
    monkeypatch.setattr(shutdown, "BODY_GRACE_SECONDS", 0.2)
    with running(slow, shutdown_seconds=60) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as slow_body:
            slow_body.sendall(
                b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
            )
            while metric(client, "bnb_connections") < 2:
                time.sleep(0.005)
            client.server.should_exit = True
            answer = slow_body.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503")


def test_readiness_says_when_the_service_ends_or_is_full(slow):
    with running(slow, max_pending=1, shutdown_seconds=10) as client, concurrent.futures.ThreadPoolExecutor() as pool:
        assert (client.get("/ready").status_code, client.get("/ready").json()) == (200, {"status": "ready"})
        waiting = pool.submit(client.post, "/generate", json={"texts": ["one text"]})
        slow.wait_for_calls(1)
        assert client.get("/ready").json() == {"detail": "too many texts are pending"}
        with socket.create_connection((client.base_url.host, client.base_url.port)) as late:
            late.sendall(b"GET /ready HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n")
            time.sleep(0.1)
            client.server.should_exit = True
            while client.server.servers and client.server.servers[0].is_serving():
                time.sleep(0.01)
            late.sendall(b"x")
            assert late.recv(65536).startswith(b"HTTP/1.1 503")
        slow.may_go.set()
        assert waiting.result().status_code == 200


def test_a_batch_that_fails_is_tried_one_by_one(slow):
    class Poisoned(SlowPipeline):
        def from_sources(self, sources, *arguments, **options):
            if self.poison in sources:
                raise RuntimeError("broken")
            return super().from_sources(sources, *arguments, **options)

    (slow.poison,), _ = slow.encode(["poison"])
    slow.__class__ = Poisoned
    slow.may_go.set()
    with running(slow, max_wait_seconds=0.5) as client, concurrent.futures.ThreadPoolExecutor(4) as pool:
        texts = ["one", "poison", "two", "three"]
        answers = list(pool.map(lambda text: client.post("/generate", json={"texts": [text]}), texts))
        assert [answer.status_code for answer in answers] == [200, 500, 200, 200]
        assert metric(client, 'bnb_dropped_total{reason="fault"}') == 1
