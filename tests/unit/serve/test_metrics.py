"""The metrics say what the service does, and the dashboard and the documents name them rightly."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bnb_ds.generate.pipeline import BnbPipeline
from tests.documents import REPOSITORY, text
from tests.exports import save_model

pytest.importorskip("httpx", reason="the extra [serve] is not installed")
pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
parser = pytest.importorskip("prometheus_client.parser", reason="the extra [serve] is not installed")

from bnb_ds.serve.metrics import CLOSED, DROPPED, Metrics  # noqa: E402
from tests.serving import running  # noqa: E402


def samples(exposition: str) -> dict[str, float]:
    """Name and labels -> value, as Prometheus would read them."""
    return {
        sample.name + "".join(f"{{{name}={value}}}" for name, value in sorted(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def test_what_was_done_is_counted(small_tokenizer, tmp_path):
    pipeline = BnbPipeline.from_pretrained(save_model(tmp_path / "model", small_tokenizer), device="cpu")
    texts = ["The import statement", "word " * 500]
    outputs = pipeline.generate(texts)
    with running(pipeline, max_wait_seconds=0.2, max_pending=2) as client:
        assert client.post("/generate", json={"texts": texts}).status_code == 200
        assert client.post("/generate", json={"texts": ["a"] * 3}).status_code == 429
        found = samples(client.get("/metrics").text)
    source_tokens = sum(output.num_source_tokens for output in outputs)
    assert found["bnb_items_total"] == 2
    assert found["bnb_truncated_total"] == 1
    assert found["bnb_source_tokens_total"] == source_tokens
    assert found["bnb_output_tokens_total"] == sum(len(output.tokens) for output in outputs)
    assert found["bnb_batch_cost_sum"] == 2 * source_tokens  # one slot for each token
    assert (found["bnb_batch_items_count"], found["bnb_batch_items_sum"]) == (1, 2)
    assert found["bnb_queue_seconds_count"] == 2
    assert found["bnb_model_seconds_count"] == 1
    assert found["bnb_request_seconds_count"] == 2
    assert found["bnb_accepted_total"] == 2
    assert found["bnb_requests_total{status=200}"] == found["bnb_requests_total{status=429}"] == 1
    assert {reason: found[f"bnb_dropped_total{{reason={reason}}}"] for reason in DROPPED} == {
        **dict.fromkeys(DROPPED, 0),
        "overloaded": 1,
    }
    assert found["bnb_connections"] == 1
    assert found["bnb_pending"] == found["bnb_queue_length"] == 0


@pytest.fixture(scope="module")
def names() -> set[str]:
    """Names of all metrics, as they stand in expressions."""
    metrics = Metrics()
    metrics.requests.labels("200")
    return {name.partition("{")[0] for name in samples(metrics.text().decode())}


def test_the_dashboard_shows_every_metric(names):
    dashboard = json.loads((REPOSITORY / "docs" / "grafana_dashboard.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = set(re.findall(r"\bbnb_\w+", " ".join(expressions)))
    assert used <= names
    roots = {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in names}
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in used} == roots
    assert all(expression.count("(") == expression.count(")") for expression in expressions)
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_the_documents_name_every_metric(names):
    page = text("docs/serving.md")
    mentioned = set(re.findall(r"`(bnb_[a-z_]+)`", page))
    roots = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in names}
    assert mentioned == {name for name in roots if (name + "_total") not in roots}
    assert all(f"`{reason}`" in page for reason in DROPPED)
    assert len(set(CLOSED)) == 4


def test_the_container_starts_the_service_that_exists():
    import argparse

    from bnb_ds.commands.generate import add_serve

    container = Path(REPOSITORY / "docker" / "Dockerfile").read_text(encoding="utf-8")
    program, command, *arguments = json.loads(re.search(r"^ENTRYPOINT (.*)$", container, re.MULTILINE)[1])
    assert (program, command) == ("bnb-ds", "serve")
    add_serve(options := argparse.ArgumentParser())
    given = options.parse_args(arguments)
    assert (str(given.model), given.host, given.port) == ("/model", "0.0.0.0", 8000)
    for source in re.findall(r"^COPY (.*) \S+$", container, re.MULTILINE):
        assert all((REPOSITORY / name).exists() for name in source.split())
