"""Forms of requests and answers: content types, HEAD, streams, request ids, and the log."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import subprocess
import time
from dataclasses import replace

import pytest

from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.generate.pipeline import BnbPipeline
from tests.exports import save_model

httpx = pytest.importorskip("httpx", reason="the extra [serve] is not installed")
pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

from tests.serving import SlowPipeline, running  # noqa: E402

NDJSON = {"Accept": "application/x-ndjson"}


@pytest.fixture(scope="module")
def client(pipeline):
    with running(pipeline, max_items=5, max_stream_items=40, max_beam_size=4) as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/metrics", "/docs"])
def test_head_has_the_headers_of_get_and_no_body(client, path):
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain; charset=utf-8", "multipart/form-data"]
)
def test_other_content_types_are_told_what_is_wanted(client, kind):
    answer = client.post("/generate", content=b'{"texts": ["a"]}', headers={"content-type": kind})
    assert answer.status_code == 415
    assert answer.json()["detail"] == (
        f"the content type is {kind.split(';')[0]}: send JSON, with the header Content-Type: application/json (with "
        "curl: -H 'Content-Type: application/json')"
    )


@pytest.mark.parametrize(
    "headers", [{}, {"content-type": "application/vnd.api+json"}, {"content-type": "Application/JSON"}]
)
def test_json_may_have_other_names_or_none(client, headers):
    assert client.post("/generate", content=b'{"texts": ["a"]}', headers=headers).status_code == 200


def test_curl_without_a_header(client):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "-sS", "-d", '{"texts": ["a"]}', f"{client.base_url}/generate"]
    assert "send JSON, with the header" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_stream_has_one_line_for_each_text_in_order(client, pipeline, small_texts):
    texts = [*(text[: 5 + n] for n, text in enumerate(small_texts[:30])), ""]
    with client.stream("POST", "/generate", json={"texts": texts}, headers=NDJSON) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert [line["index"] for line in lines] == list(range(31))
    assert [line["text"] for line in lines] == pipeline(texts)


def test_a_stream_sends_outputs_as_they_are_done(exported):
    slow = SlowPipeline.from_pretrained(exported, device="cpu")
    slow.hold()

    class OneOutput(SlowPipeline):
        def from_sources(self, sources, *arguments, **options):
            output = super().from_sources(sources, *arguments, **options)
            self.may_go.clear()
            return output

    slow.__class__ = OneOutput
    slow.may_go.set()
    with (
        running(slow, token_budget=1, max_wait_seconds=0) as client,
        client.stream("POST", "/generate", json={"texts": ["one", "two"]}, headers=NDJSON) as answer,
    ):
        lines = answer.iter_lines()
        assert json.loads(next(lines))["index"] == 0  # the second is still in the model
        slow.wait_for_calls(2)
        slow.may_go.set()
        assert json.loads(next(lines))["index"] == 1


def test_faults_of_a_stream(client, exported):
    answer = client.post("/generate", json={"texts": ["a"] * 41}, headers=NDJSON)
    assert (answer.status_code, answer.json()) == (413, {"detail": "41 texts: send at most 40 in one request"})
    assert client.post("/generate", json={"texts": ["a"] * 40}, headers=NDJSON).status_code == 200

    class Faulty(BnbPipeline):
        def from_sources(self, sources, *arguments, **options):
            if sources[0] == self.poison:
                raise RuntimeError("broken")
            return super().from_sources(sources, *arguments, **options)

    faulty = Faulty.from_pretrained(exported, device="cpu")
    (faulty.poison,), _ = faulty.encode(["poison"])
    with running(faulty, token_budget=1) as other:
        answer = other.post("/generate", json={"texts": ["poison", "b"]}, headers=NDJSON)
        assert (answer.status_code, answer.json()) == (500, {"detail": "the model failed on this request"})
        answer = other.post("/generate", json={"texts": ["a", "poison", "b"]}, headers=NDJSON)
        first, second = map(json.loads, answer.text.splitlines())
        assert (answer.status_code, first["index"]) == (200, 0)
        assert second == {"detail": "the model failed on this request"}
        assert 'bnb_dropped_total{reason="fault"} 2.0' in other.get("/metrics").text


def test_beams_are_limited(client):
    answer = client.post("/generate", json={"texts": ["a"], "options": {"beam_size": 5}})
    assert (answer.status_code, answer.json()) == (400, {"detail": "beam_size is 5: this service allows at most 4"})
    assert client.post("/generate", json={"texts": ["a"], "options": {"beam_size": 4}}).status_code == 200


def test_the_limit_on_beams_has_one_home(pipeline):
    with running(pipeline, max_beam_size=40) as wide:
        assert wide.post("/generate", json={"texts": ["a"], "options": {"beam_size": 40}}).status_code == 200
        answer = wide.post("/generate", json={"texts": ["a"], "options": {"beam_size": 10**30}})
        assert answer.status_code == 400
        assert answer.json()["detail"].endswith("this service allows at most 40")


def logged(caplog, number: int) -> list[str]:
    """The lines of the log. A line follows its answer, so the last one may take a moment."""
    end = time.monotonic() + 30
    while True:
        found = [record.getMessage() for record in caplog.records if record.name == "bnb_ds.serve.requests"]
        if len(found) >= number or time.monotonic() > end:
            return found
        time.sleep(0.01)


def test_request_ids_are_returned_and_logged(client, caplog):
    with caplog.at_level(logging.INFO, "bnb_ds.serve"):
        given = client.post("/generate", json={"texts": ["a text"]}, headers={"X-Request-Id": "mine-7"})
        made = client.post("/generate", content=b"{", headers={"X-Request-Id": "not good\tat all"})
        client.get("/health")
    assert given.headers["x-request-id"] == "mine-7"
    assert re.fullmatch("[0-9a-f]{32}", made.headers["x-request-id"])
    first, second = [record.getMessage() for record in caplog.records if record.name == "bnb_ds.serve.requests"]
    assert first.startswith("request=mine-7 client=127.0.0.1 method=POST path=/generate status=200 total_ms=")
    for fact in ("texts=1", "source_tokens=", "output_tokens=", "queue_ms=", "model_ms=", "queue=0", "batch=1"):
        assert fact in first
    assert f"request={made.headers['x-request-id']} " in second
    assert "status=422" in second


def test_a_path_cannot_forge_a_line(client, caplog):
    with caplog.at_level(logging.INFO, "bnb_ds.serve"):
        client.get("/a%0Arequest=forged")
        (line,) = logged(caplog, 1)
    assert "path=/a?request=forged status=404" in line


def test_an_address_in_a_header_cannot_forge_facts(client, caplog):
    with caplog.at_level(logging.INFO, "bnb_ds.serve"):
        client.get("/a", headers={"X-Forwarded-For": "me status=200"})
        (line,) = logged(caplog, 1)
    assert "client=me?status=200 method=GET path=/a status=404" in line


def test_a_body_in_another_encoding_is_told_what_is_wanted(client):
    answer = client.post("/generate", content=b'{"texts": ["caf\xe9"]}', headers={"Content-Type": "application/json"})
    detail = answer.json()["detail"]
    assert (answer.status_code, detail) == (400, "the body is not UTF-8 at byte 15: send JSON in UTF-8")


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_an_output_without_probability_has_no_score(pipeline, monkeypatch, accept):
    """Infinity is not JSON, and browsers refuse it."""
    plain = pipeline.from_sources
    monkeypatch.setattr(
        pipeline, "from_sources", lambda *a, **b: [replace(one, score=-math.inf) for one in plain(*a, **b)]
    )
    body = {"texts": ["a text"], "return_scores": True}
    with running(pipeline) as client:
        answer = client.post("/generate", json=body, headers={"Accept": accept})
    found = json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found.get("outputs", [found])[0]["score"] is None


REFINED = {"decoder_tokens": True, "mask_token_id": 4}


def test_requests_choose_their_refinement(small_tokenizer, small_texts, client, tmp_path):
    pipeline = BnbPipeline.from_pretrained(save_model(tmp_path / "model", small_tokenizer, **REFINED), device="cpu")
    texts = [text[: 10 + 7 * n] for n, text in enumerate(small_texts[:6])]
    wanted = {
        passes: [output.text for output in pipeline.generate(texts, options=DecodeOptions(refinement=passes))]
        for passes in (0, 1, 3)
    }
    assert wanted[0] != wanted[3]
    with running(pipeline, max_items=20) as refining:
        for passes, outputs in wanted.items():
            body = {"texts": texts, "options": {"refinement": passes}}
            assert [output["text"] for output in refining.post("/generate", json=body).json()["outputs"]] == outputs
        body["options"]["refinement"] = 33
        assert refining.post("/generate", json=body).status_code == 422
    answer = client.post("/generate", json={"texts": ["a"], "options": {"refinement": 1}})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("refinement is 1: its passes show tokens to the decoder, and this model")


def test_requests_choose_the_path_through_a_graph(graph, client, small_texts):
    texts = [text[: 10 + 7 * n] for n, text in enumerate(small_texts[:4])]
    choices = [
        {"strategy": "greedy"},
        {"strategy": "lookahead", "lookahead_beta": 0.5},
        {"strategy": "joint_viterbi", "length_penalty": 2, "merge_duplicates": False},
        {"strategy": "beam", "beam_size": 3, "no_repeat_ngram_size": 2},
        {"strategy": "sample", "temperature": 1.5, "top_p": 0.9, "seed": 3},
        {"strategy": "sample", "temperature": 1.5, "top_p": 0.9, "seed": 4},
    ]
    outputs = []
    with running(graph, max_items=20, max_beam_size=4) as served:
        for options in choices:
            answer = served.post("/generate", json={"texts": texts, "options": options})
            outputs.append([output["text"] for output in answer.json()["outputs"]])
            wanted = graph.generate(texts, options=DecodeOptions(**options))
            assert outputs[-1] == [output.text for output in wanted], options
        assert outputs[-1] != outputs[-2]
        for options, status, detail in (
            ({"strategy": "beem"}, 400, "strategy is 'beem': did you mean 'beam'?"),
            ({"strategy": "beam"}, 400, "strategy beam follows 20 outputs: this service allows at most 4; give beam_s"),
            ({"strategy": "greedy", "seed": 3}, 400, "temperature, top_p and seed belong to strategy 'sample'"),
            ({"strategy": "sample", "top_p": 0}, 422, "top_p"),
            ({"exit_entropy": 0.1}, 400, "exit_entropy is 0.1: only models with deep_supervision predict behind every"),
        ):
            answer = served.post("/generate", json={"texts": ["a"], "options": options})
            assert answer.status_code == status, answer.text
            assert detail in answer.json()["detail"], answer.text
    answer = client.post("/generate", json={"texts": ["a"], "options": {"strategy": "viterbi"}})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("strategy is 'viterbi', but the model's target is 'ctc': leave it out")
