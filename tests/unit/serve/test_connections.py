"""Connections that never finish, come in thousands, or do not read: the service goes on answering."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time

import pytest

from bnb_ds.cli import main
from bnb_ds.errors import ConfigError
from bnb_ds.generate.pipeline import BnbPipeline
from tests.exports import save_model

pytest.importorskip("httpx", reason="the extra [serve] is not installed")
pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

from bnb_ds.serve.limits import connection_caps
from tests.serving import SlowPipeline, running

pytestmark = pytest.mark.slow

HALF_OF_HEADERS = b"POST /generate HTTP/1.1\r\nhost: x\r\nx-slow: "
HALF_OF_A_BODY = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"


@pytest.fixture(scope="module")
def pipeline(small_tokenizer, tmp_path_factory):
    return BnbPipeline.from_pretrained(save_model(tmp_path_factory.mktemp("open") / "model", small_tokenizer))


@pytest.fixture(params=["h11", "httptools"])
def parser(request) -> str:
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return request.param


def connect(client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=30)


def rest(connection: socket.socket) -> bytes:
    """Everything until the service closes the connection."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        while block := connection.recv(65536):
            answer += block
    return answer


def closed(client, reason: str) -> float:
    text = client.get("/metrics").text
    name = f'bnb_closed_connections_total{{reason="{reason}"}} '
    return float(next(line for line in text.splitlines() if line.startswith(name)).rpartition(" ")[2])


def test_health_answers_while_2000_connections_stand(pipeline, parser):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 5000  # both ends of each connection are files of this process
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"the process may have only {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    limits = {"header_seconds": 60, "timeout_seconds": 60, "max_connections": 2100, "max_connections_per_client": 2100}
    try:
        with running(pipeline, http=parser, **limits) as client, contextlib.ExitStack() as stack:
            for number in range(2000):
                connection = stack.enter_context(connect(client))
                if number % 2:
                    connection.sendall(HALF_OF_HEADERS)
            while float(client.get("/metrics").text.split("\nbnb_connections ")[1].split("\n")[0]) < 2001:
                time.sleep(0.05)
            assert client.get("/health").json()["status"] == "ok"
            assert client.post("/generate", json={"texts": ["a text"]}).status_code == 200
            assert [closed(client, reason) for reason in ("late_headers", "gave_way", "refused")] == [0, 0, 0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("sent", [b"", b"GET", HALF_OF_HEADERS], ids=["silent", "a word", "half of the headers"])
def test_headers_have_a_deadline(pipeline, parser, sent):
    with running(pipeline, http=parser, header_seconds=0.3) as client, connect(client) as connection:
        connection.sendall(sent)
        answer = rest(connection)
        if sent:
            assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
            assert json.loads(answer.split(b"\r\n\r\n")[1]) == {
                "detail": "the headers did not arrive within 0.3 seconds"
            }
        else:
            assert answer == b""
        assert closed(client, "late_headers") == 1


def test_bytes_that_trickle_do_not_move_the_deadline(pipeline, parser):
    with running(pipeline, http=parser, header_seconds=0.5) as client, connect(client) as connection:
        connection.sendall(HALF_OF_HEADERS)
        end = time.monotonic() + 20
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < end:
                connection.sendall(b"x")
                time.sleep(0.02)
        assert time.monotonic() < end
        assert closed(client, "late_headers") == 1


def test_a_second_request_has_the_deadline_too(pipeline, parser):
    with running(pipeline, http=parser, header_seconds=0.3) as client, connect(client) as connection:
        for _ in range(2):
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(0.6)  # an idle connection is not late
        connection.sendall(b"GET /health HT")
        assert rest(connection).startswith(b"HTTP/1.1 408")


def test_an_answer_may_take_longer_than_headers(pipeline, parser):
    with running(pipeline, http=parser, header_seconds=0.2, timeout_seconds=1) as client, connect(client) as connection:
        connection.sendall(HALF_OF_A_BODY)
        assert b"the body did not arrive within 1 seconds" in rest(connection)


def test_endless_headers_are_refused(pipeline, parser):
    with running(pipeline, http=parser, header_seconds=30) as client, connect(client) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(HALF_OF_HEADERS + b"x" * 1_000_000)
        assert rest(connection)[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400", b"")
        assert client.get("/health").status_code == 200
        assert float(client.get("/metrics").text.split("\nbnb_connections ")[1].split("\n")[0]) == 1


@pytest.mark.parametrize("caps", [{"max_connections": 4}, {"max_connections_per_client": 4}], ids=["all", "one client"])
def test_at_the_cap_the_longest_waiting_gives_way(pipeline, parser, caps):
    with running(pipeline, http=parser, **caps) as client, contextlib.ExitStack() as stack:
        first, *others = [stack.enter_context(connect(client)) for _ in range(4)]
        first.sendall(HALF_OF_A_BODY)
        others[0].sendall(HALF_OF_HEADERS)
        assert client.get("/health").status_code == 200
        assert rest(first) == b""
        assert closed(client, "gave_way") == 1
        others[-1].sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert rest(others[-1]).startswith(b"HTTP/1.1 200")


def test_one_connection_is_enough(pipeline, parser):
    with running(pipeline, http=parser, max_connections=1) as client, connect(client) as first:
        assert client.get("/health").status_code == 200
        assert rest(first) == b""
        with connect(client) as second:
            second.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert rest(second).startswith(b"HTTP/1.1 200")


def test_requests_in_the_model_never_give_way(pipeline, parser, small_tokenizer, tmp_path):
    slow = SlowPipeline.from_pretrained(save_model(tmp_path / "model", small_tokenizer), device="cpu")
    slow.hold()
    body = b'{"texts": ["a text"]}'
    whole = HALF_OF_A_BODY.replace(b"99\r\n\r\n{", b"%d\r\nconnection: close\r\n\r\n" % len(body)) + body
    with running(slow, http=parser, max_connections=2, max_wait_seconds=0) as client, contextlib.ExitStack() as stack:
        working = [stack.enter_context(connect(client)) for _ in range(2)]
        for connection in working:
            connection.sendall(whole)
        slow.wait_for_calls(1)
        time.sleep(0.2)  # until the other's body has been read too
        answer = rest(stack.enter_context(connect(client)))
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"Retry-After: 1\r\n" in answer
        slow.may_go.set()
        assert all(rest(connection).startswith(b"HTTP/1.1 200") for connection in working)


def test_a_client_that_does_not_read_is_closed(pipeline, parser):
    request = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n"
    with running(pipeline, http=parser, write_seconds=0.3) as client, connect(client) as connection:
        connection.setblocking(False)
        end = time.monotonic() + 30
        while closed(client, "unread_answer") == 0:
            assert time.monotonic() < end
            with contextlib.suppress(OSError):
                connection.send(request * 50)  # several requests at once, whose answers nobody reads


def test_caps_stay_below_the_limit_of_open_files(monkeypatch, small_tokenizer, tmp_path, capsys):
    def limit(number: int) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda what: (number, number))

    limit(1024)
    assert connection_caps(None, None) == (1024 - 128, 448)
    assert connection_caps(100, None) == (100, 50)
    assert connection_caps(100, 500) == (100, 100)
    limit(1 << 20)
    assert connection_caps(None, None) == (4096, 2048)
    limit(resource.RLIM_INFINITY)
    assert connection_caps(50_000, 7) == (50_000, 7)
    limit(1024)
    with pytest.raises(ConfigError, match="--max-connections 1000 needs 1128 open files, and this process may have"):
        connection_caps(1000, None)
    assert main(["serve", str(tmp_path), "--max-connections", "1000"]) == 2
    assert "run `ulimit -n 1128` first, or give fewer" in capsys.readouterr().err
