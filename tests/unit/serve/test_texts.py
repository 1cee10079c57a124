"""The service reads and writes text with the tokenizers of its model."""

from __future__ import annotations

import pytest

from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.tasks.codec import Codec
from tests.exports import save_task_model
from tests.serving import running


def test_slots_are_named_by_the_target_tokenizer(small_tokenizer, other_tokenizer, tmp_path):
    model = save_task_model(tmp_path / "model", "translation", Codec(small_tokenizer, other_tokenizer))
    pipeline = BnbPipeline.from_pretrained(model, device="cpu")
    body = {"texts": ["the value of it", "[SEP]"], "return_slots": True}
    with running(pipeline) as client:
        outputs = client.post("/generate", json=body).json()["outputs"]
    assert [output["text"] for output in outputs] == pipeline(body["texts"])
    for output in outputs:
        written = [slot["token"] for slot in output["slots"] if slot["writes"] is not None]
        assert pipeline.codec.decode([other_tokenizer.convert_tokens_to_ids(written)]) == [output["text"]]


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_a_source_of_two_texts_needs_a_tab(small_tokenizer, tmp_path, accept):
    model = save_task_model(tmp_path / "model", "squad_qg", Codec(small_tokenizer, small_tokenizer))
    with running(BnbPipeline.from_pretrained(model, device="cpu")) as client:
        for text in ("context", "\tcontext", "answer\t "):
            answer = client.post("/generate", json={"texts": ["a\tb", text]}, headers={"Accept": accept})
            assert (answer.status_code, f"but {text!r} is one text; add" in answer.json()["detail"]) == (400, True)
        assert client.post("/generate", json={"texts": ["a\tb", ""]}, headers={"Accept": accept}).status_code == 200
