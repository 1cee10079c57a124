"""The HTTP service: many clients at once, bad requests, and a shutdown that loses no request."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import os
import re
import socket
import time

import pytest

from bnb_ds.generate.pipeline import BnbPipeline
from tests.exports import MAX_TOKENS

httpx = pytest.importorskip("httpx", reason="the extra [serve] is not installed")
pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

from tests.serving import SlowPipeline, running  # noqa: E402


@pytest.fixture(scope="module")
def client(pipeline):
    with running(pipeline, max_items=5, max_body_bytes=5000) as client:
        yield client


@pytest.fixture(scope="module")
def texts(small_texts) -> list[str]:
    return [text[: 3 + 11 * (i % 17)] for i, text in enumerate(small_texts)]


def test_outputs_are_the_pipelines(client, pipeline, texts):
    sent = [*texts[:3], "", "word " * 500]
    answer = client.post("/generate", json={"texts": sent, "return_scores": True})
    assert answer.status_code == 200
    expected = pipeline.generate(sent, with_scores=True)
    outputs = answer.json()["outputs"]
    assert [output["text"] for output in outputs] == [output.text for output in expected]
    assert [output["is_truncated"] for output in outputs] == [False] * 4 + [True]
    empty = {"text": "", "score": None, "num_source_tokens": 0, "is_truncated": False}
    assert {name: outputs[3][name] for name in empty} == empty
    assert outputs[4]["num_source_tokens"] == MAX_TOKENS
    assert outputs[0]["score"] == pytest.approx(expected[0].score, rel=1e-6)


def test_options_of_a_request_are_its_own(client, pipeline, texts):
    limited = client.post("/generate", json={"texts": texts[:2], "options": {"max_length": 3, "beam_size": 2}}).json()
    plain = client.post("/generate", json={"texts": texts[:2]}).json()
    assert all(len(output["text"].split()) <= 3 for output in limited["outputs"])
    assert [output["text"] for output in plain["outputs"]] == pipeline(texts[:2])


def test_many_clients_lose_and_mix_up_nothing(pipeline, texts):
    """First one client asks alone, then all at once; batch sizes are left to chance."""
    with running(pipeline, max_wait_seconds=0.02) as client:

        def ask(number: int) -> tuple[int, list[str]]:
            sent = [texts[(number * 7 + i) % len(texts)] for i in range(1 + number % 3)]
            options = {"max_length": 4} if number % 4 == 0 else {}
            answer = client.post("/generate", json={"texts": sent, "options": options})
            assert answer.status_code == 200, answer.text
            return number, [output["text"] for output in answer.json()["outputs"]]

        alone = dict(ask(number) for number in range(20))
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            together = list(pool.map(ask, [number for _ in range(4) for number in range(20)]))
        assert all(outputs == alone[number] for number, outputs in together)
        found = client.get("/metrics").text
    assert 'bnb_requests_total{status="200"} 100.0' in found
    assert "bnb_pending 0.0" in found
    batches = float(re.search(r"^bnb_batch_items_count (\S+)", found, re.MULTILINE)[1])
    items = float(re.search(r"^bnb_batch_items_sum (\S+)", found, re.MULTILINE)[1])
    assert items == float(re.search(r"^bnb_items_total (\S+)", found, re.MULTILINE)[1])
    assert items > 1.5 * batches, "nothing was batched together"


MALFORMED = [
    (b"", 422),
    (b"{", 422),
    (b"[]", 422),
    (b"null", 422),
    (b"\xff\xfe", 422),
    (b'{"texts": []}', 422),
    (b'{"texts": "a"}', 422),
    (b'{"texts": [1]}', 422),
    (b'{"texts": [null]}', 422),
    (b'{"texts": ["\\ud800"]}', 422),
    (b'{"texts": ["a"], "\\ud800": 1}', 422),
    (b'{"texts": ["a"], "model": "/etc/passwd"}', 422),
    (b'{"texts": ["a"], "options": {"lm": "/etc/passwd"}}', 422),
    (b'{"texts": ["a"], "options": {"beam_size": 0}}', 422),
    (b'{"texts": ["a"], "options": {"beam_size": 1e99}}', 422),
    (b'{"texts": ["a"], "options": {"beam_size": NaN}}', 422),
    (b'{"texts": ["a"], "options": {"beam_size": true}}', 422),
    (b'{"texts": ["a"], "options": {"beam_size": "2"}}', 422),
    (b'{"texts": ["a"], "options": {"length_beam": 2}}', 400),
    (b'{"texts": ["a"], "options": {"min_length": 9, "max_length": 8}}', 400),
    (b'{"texts": ["a"], "return_scores": "yes"}', 422),
    (b'{"texts": ["a"], "options": {"max_length": ' + b"9" * 4500 + b"}}", 400),
    (b"[" * 4900, 400),
    (b'{"texts": ["a", "b", "c", "d", "e", "f"]}', 413),
    (b'{"texts": ["' + b"x" * 5000 + b'"]}', 413),
]


@pytest.mark.parametrize(("body", "status"), MALFORMED, ids=[repr(body[:40]) for body, _ in MALFORMED])
def test_malformed_bodies_are_the_clients_fault(client, body, status):
    answer = client.post("/generate", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, set(answer.json())) == (status, {"detail"})
    assert "\n" not in answer.json()["detail"]
    assert client.get("/health").json()["status"] == "ok"


def test_half_of_a_character_is_named(client):
    answer = client.post(
        "/generate", content=b'{"texts": ["a", "\\ud800"]}', headers={"content-type": "application/json"}
    )
    assert answer.json()["detail"].endswith("text 1 holds half of a character: send whole ones")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/generate", 405),
        ("DELETE", "/health", 405),
        ("POST", "/", 405),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/%00", 404),
        ("POST", "/docs", 405),
    ],
)
def test_other_paths_and_methods(client, method, path, status):
    assert client.request(method, path).status_code == status


def test_a_body_without_a_length_is_limited_too(client):
    def chunks():
        for _ in range(50):
            yield b'{"texts": ["' + b"x" * 1000

    answer = client.post("/generate", content=chunks(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["detail"] == "the body has more than 5000 bytes: send fewer texts"


def raw(client, data: bytes) -> bytes:
    """Send these bytes and return the answer."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
        connection.sendall(data)
        answer = b""
        while block := connection.recv(65536):
            answer += block
        return answer


def test_what_is_not_http_is_refused(client):
    for data in (b"nonsense\r\n\r\n", b"\x16\x03\x01" * 20 + b"\r\n\r\n"):
        assert raw(client, data).split(b" ")[1][:1] == b"4"
    lengths = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n"
    assert raw(client, lengths).split(b" ")[1][:1] == b"4"
    assert client.get("/health").status_code == 200


def test_a_slow_body_is_given_up(pipeline):
    with running(pipeline, timeout_seconds=0.3) as client:
        answer = raw(client, b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"the body did not arrive within 0.3 seconds" in answer


@pytest.fixture
def slow(exported):
    pipeline = SlowPipeline.from_pretrained(exported, device="cpu")
    pipeline.hold()
    return pipeline


def test_too_much_at_once_gets_429_and_what_was_accepted_is_answered(slow):
    with running(slow, max_pending=3) as client, concurrent.futures.ThreadPoolExecutor(9) as pool:
        waiting = [pool.submit(client.post, "/generate", json={"texts": ["one text"]}) for _ in range(8)]
        while sum(future.done() for future in waiting) < 5:
            time.sleep(0.01)
        slow.may_go.set()
        answers = [future.result() for future in waiting]
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 5
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert client.post("/generate", json={"texts": ["one text"]}).status_code == 200


def test_what_is_not_done_in_time_gets_504_and_frees_its_place(slow):
    with running(slow, max_pending=1, timeout_seconds=0.3) as client:
        assert client.post("/generate", json={"texts": ["one text"]}).status_code == 504
        slow.may_go.set()
        assert client.post("/generate", json={"texts": ["one text"]}).status_code == 200


def test_a_fault_of_the_model_fails_its_request_alone(exported):
    class Faulty(BnbPipeline):
        def from_sources(self, sources, *arguments, **options):
            if any(len(source) == MAX_TOKENS for source in sources):
                raise RuntimeError("broken")
            return super().from_sources(sources, *arguments, **options)

    pipeline = Faulty.from_pretrained(exported, device="cpu")
    with running(pipeline) as client:
        failed = client.post("/generate", json={"texts": ["word " * 500]})
        assert (failed.status_code, failed.json()) == (500, {"detail": "the model failed on this request"})
        assert client.post("/generate", json={"texts": ["one text"]}).json()["outputs"][0]["text"] == pipeline(
            "one text"
        )


def test_the_page_loads_nothing_from_elsewhere(client):
    text = client.get("/docs").text
    assert "POST /generate" in text
    assert "max_length" in text
    assert not re.search(r"(src|href)=.?https?:", text)
    description = client.get("/openapi.json").json()
    assert set(description["paths"]) == {"/generate", "/health", "/ready", "/metrics"}
    assert {"200", "400", "413", "422", "429"} <= set(description["paths"]["/generate"]["post"]["responses"])


@pytest.mark.slow
def test_requests_made_from_the_description_never_break_it(client):
    """Malformed requests get 4xx, and no request gets 5xx. TEST_REQUESTS sets the number per operation and kind."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from hypothesis import HealthCheck, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import negative_data_rejection

    schema = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
    statuses = collections.Counter()
    examples = int(os.environ.get("TEST_REQUESTS", "150"))

    for operation in (result.ok() for result in schema.get_all_operations()):
        for mode in schemathesis.GenerationMode:

            @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            def check(case):
                answer = case.call()
                # Too long a body is refused before it is read; the check does not know 413.
                checks = [not_a_server_error, *([negative_data_rejection] if answer.status_code != 413 else [])]
                case.validate_response(answer, checks=checks)
                statuses[case.meta.generation.mode.name, answer.status_code] += 1

            strategy = operation.as_strategy(generation_mode=mode)
            with contextlib.suppress(Unsatisfiable):  # no malformed request exists for this operation
                given(case=strategy)(check)()
    print("\n".join(f"{mode} {status}: {count}" for (mode, status), count in sorted(statuses.items())))
    assert {200, 422} <= {status for _, status in statuses}
    assert "bnb_pending 0.0" in client.get("/metrics").text
