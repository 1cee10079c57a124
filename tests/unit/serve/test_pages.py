"""The pages for people, in a headless browser that may reach nothing but the service."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from bnb_ds.generate.pipeline import BnbPipeline

pytest.importorskip("httpx", reason="the extra [serve] is not installed")
pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

from bnb_ds.decoding.options import DecodeOptions
from tests.serving import SlowPipeline, running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(exported):
    with running(BnbPipeline.from_pretrained(exported, device="cpu")) as client:
        yield client


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, client):
    """A page whose console must stay empty, and which asks nobody but the service."""
    page = browser.new_page(viewport={"width": 1100, "height": 800})
    said, asked = [], []
    refusal = "Failed to load resource: the server responded with a status of 413"  # the browser's own words
    page.on("console", lambda message: said.append(message.text) if refusal not in message.text else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    yield page
    keep(page)
    page.close()
    assert said == []
    assert asked
    assert all(url.startswith(("http://127.0.0.1:", "data:")) for url in asked)


def keep(page, name: str | None = None) -> None:
    """Save a picture in the folder that TEST_PICTURES names, for somebody to look at."""
    if folder := os.environ.get("TEST_PICTURES"):
        name = name or re.sub(r"\W+", "_", os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].split(" ")[0])
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_name_no_other_host(client, path):
    answer = client.get(path)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"https?://|(src|href)=.?//", answer.text)
    assert "${" not in answer.text


def test_outputs_times_and_slots_are_shown(page, client, exported):
    texts = ["The import statement", '<b>a</b> & "b"']
    page.goto(f"{client.base_url}/")
    page.get_by_label("Text", exact=True).fill("\n".join([texts[0], "", texts[1]]))
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("2 of 2 outputs in").wait_for()
    pipeline = BnbPipeline.from_pretrained(exported, device="cpu")
    assert page.locator(".output .text").all_inner_texts() == pipeline(texts)
    assert page.locator(".output .note").first.inner_text() == texts[0]
    assert re.search(r"after [\d.]+ m?s: [\d.]+ m?s in the queue, [\d.]+ m?s in the model", page.inner_text("#outputs"))
    slots = client.post("/generate", json={"texts": texts, "return_slots": True}).json()["outputs"][0]["slots"]
    cells = page.locator(".output").first.locator(".slots .slot")
    assert cells.count() == len(slots)
    for cell, slot in zip(cells.all(), slots, strict=True):
        assert cell.inner_text().split("\n")[0] == (slot["token"] or "∅")
    written = sum(slot["writes"] is not None for slot in slots)
    assert f"{len(slots)} slots, {written} wrote a token" in page.locator("summary").first.inner_text()
    cells.first.click()
    rows = page.locator(".candidates tr")
    assert rows.count() == 3
    assert (slots[0]["candidates"][0][0] or "∅ blank") in rows.first.inner_text()


def test_an_empty_text_of_special_tokens_is_explained(page, client):
    """A model that has hardly been trained writes [CLS] alone."""
    slot = {"token": "[CLS]", "probability": 0.9, "writes": 0, "candidates": [["[CLS]", 0.9]]}
    times = {"queue_ms": 1.0, "model_ms": 1.0, "num_source_tokens": 3, "is_truncated": False}
    page.route("**/generate", lambda route: route.fulfill(body=json.dumps({**answer, **times}) + "\n"))
    page.goto(f"{client.base_url}/")
    page.get_by_label("Text", exact=True).fill("a text")
    explanation = page.get_by_text("only special tokens were written, and a text leaves them out")
    answer = {"index": 0, "text": "", "slots": []}
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("1 of 1 outputs in").wait_for()
    assert explanation.count() == 0
    answer = {"index": 0, "text": "", "slots": [slot]}
    page.get_by_role("button", name="Generate").click()
    explanation.wait_for()


def test_outputs_appear_as_they_come(page, exported):
    class OneByOne(SlowPipeline):
        def from_sources(self, sources, *arguments, **options):
            output = super().from_sources(sources, *arguments, **options)
            self.may_go.clear()
            return output

    slow = OneByOne.from_pretrained(exported, device="cpu")
    slow.hold()
    slow.may_go.set()
    with running(slow, token_budget=1, max_wait_seconds=0) as client:
        page.goto(f"{client.base_url}/")
        page.get_by_label("Text", exact=True).fill("one\ntwo\nthree")
        page.get_by_label("Text", exact=True).press("Control+Enter")
        page.get_by_text("1 of 3 outputs in").wait_for()
        slow.may_go.set()
        page.get_by_text("2 of 3 outputs in").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("Stopped.").wait_for()
        while 'reason="client_gone"} 1.0' not in client.get("/metrics").text:
            page.wait_for_timeout(10)
        slow.may_go.set()


def test_typing_alone_is_enough_and_options_count(page, client, exported):
    page.goto(f"{client.base_url}/")
    page.get_by_label("as I type").check()
    page.get_by_label("most tokens").fill("2")
    page.get_by_label("Text", exact=True).press_sequentially("The import statement")
    page.get_by_text("1 of 1 outputs in").wait_for()
    pipeline = BnbPipeline.from_pretrained(exported, device="cpu")
    (wanted,) = pipeline.generate(["The import statement"], options=DecodeOptions(max_length=2))
    page.wait_for_function("text => document.querySelector('.output .text').innerText === text", arg=wanted.text)


def test_faults_are_said(page, exported):
    with running(BnbPipeline.from_pretrained(exported, device="cpu"), max_beam_size=4, max_stream_items=2) as client:
        page.goto(f"{client.base_url}/")
        page.get_by_label("Text", exact=True).fill("a\nb\nc")
        page.get_by_role("button", name="Generate").click()
        page.get_by_text("3 texts: send at most 2 in one request").wait_for()
        assert "bad" in page.locator("#status").get_attribute("class")


def test_the_example_of_the_description_runs(page, client):
    page.goto(f"{client.base_url}/docs")
    assert page.get_by_text("POST /generate").count() >= 1
    page.get_by_role("button", name="Send").click()
    page.get_by_text("Status 200 after").wait_for()
    answer = json.loads(page.locator("#answer").inner_text())
    assert len(answer["outputs"]) == 2
    assert answer["outputs"][0]["score"] < 0
    page.get_by_label("one line for each output").check()
    page.get_by_role("button", name="Send").click()
    page.wait_for_function("() => document.querySelector('#answer').innerText.startsWith('{\"index\": 0')")
    assert "application/x-ndjson" in page.locator("#curl").inner_text()
    assert '-d \'{ "texts": [' in page.locator("#curl").inner_text()
