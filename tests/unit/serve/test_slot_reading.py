"""Slots that a request asks for: how each was read."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bnb_ds.generate.pipeline import BnbPipeline
from tests.exports import save_model

pytest.importorskip("httpx", reason="the extra [serve] is not installed")
pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

from bnb_ds.serve.slot_reading import align
from tests.serving import running

REFINED = {"decoder_tokens": True, "mask_token_id": 4}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"decoder_length": "padded"},
        {"decoder_length": "predicted"},
        REFINED,
        {"decoder_length": "predicted", **REFINED},
    ],
    ids=["source", "padded", "predicted", "source refined", "predicted refined"],
)
def test_slots_read_as_the_output(small_tokenizer, small_texts, tmp_path, fields):
    pipeline = BnbPipeline.from_pretrained(save_model(tmp_path / "model", small_tokenizer, **fields), device="cpu")
    texts = [text[: 10 + 7 * n] for n, text in enumerate(small_texts[:6])]
    options = {} if fields.get("decoder_length") == "predicted" else {"max_length": 6}
    if "decoder_tokens" in fields:
        options = {"refinement": 2}
    with running(pipeline, max_items=20) as client:
        for sent in ({}, options):
            body = {"texts": [*texts, ""], "options": sent, "return_slots": True}
            outputs = client.post("/generate", json=body).json()["outputs"]
            plain = client.post("/generate", json={**body, "return_slots": False}).json()["outputs"]
            assert [output["text"] for output in outputs] == [output["text"] for output in plain]
            assert "slots" not in plain[0]
            assert outputs[-1]["slots"] == []
            for output in outputs[:-1]:
                written = [slot for slot in output["slots"] if slot["writes"] is not None]
                assert [slot["writes"] for slot in written] == list(range(len(written)))
                ids = pipeline.codec.target.convert_tokens_to_ids([slot["token"] for slot in written])
                assert pipeline.codec.decode([ids]) == [output["text"]]
                for slot in output["slots"]:
                    assert 0 <= slot["probability"] <= slot["candidates"][0][1] + 1e-6
                    if not sent:  # greedy: every slot stands for its best token
                        assert slot["token"] == slot["candidates"][0][0]


def test_slots_are_read_with_the_blank_penalty(small_tokenizer, small_texts, tmp_path):
    """Of what a slot may stand for, its output's reading takes the best once the blank is lowered."""
    pipeline = BnbPipeline.from_pretrained(save_model(tmp_path / "model", small_tokenizer), device="cpu")
    penalty = 2.0
    model = pipeline.engine.model
    model.lm_head.bias.data[model.config.blank_token_id] += penalty  # most slots stay blank without the penalty
    body = {"texts": small_texts[:4], "options": {"blank_penalty": penalty}, "return_slots": True}
    with running(pipeline, max_items=20) as client:
        slots = [slot for output in client.post("/generate", json=body).json()["outputs"] for slot in output["slots"]]

    def odds(candidate):
        token, probability = candidate
        return probability * (math.exp(-penalty) if token is None else 1.0)

    assert [slot["token"] for slot in slots] == [max(slot["candidates"], key=odds)[0] for slot in slots]
    assert any(slot["token"] is not None and slot["candidates"][0][0] is None for slot in slots), "the penalty told"


def test_slots_need_the_torch_engine(exported, tmp_path):
    compiled = BnbPipeline.from_pretrained(exported, device="cpu", compile=True)
    with running(compiled) as client:
        answer = client.post("/generate", json={"texts": ["a"], "return_slots": True})
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith("return_slots needs the torch model without --compile, and this")
        assert "const hasSlots = false;" in client.get("/").text


def test_slots_of_a_graph_are_not_read_as_ctc(graph):
    with running(graph) as client:
        answer = client.post("/generate", json={"texts": ["a"], "return_slots": True})
        assert (answer.status_code, answer.json()["detail"]) == (
            400,
            "return_slots is for CTC and length classification; the slots of this model are a graph: leave it out",
        )
        assert "const hasSlots = false;" in client.get("/").text
        assert client.post("/generate", json={"texts": ["a"]}).status_code == 200


def test_the_best_alignment_is_found():
    """Every alignment of two tokens and five slots, by enumeration."""
    import itertools

    rng = np.random.default_rng(0)
    for tokens in ([3, 3], [3, 4], [7], []):
        scores = np.log(rng.dirichlet(np.ones(6), 5))[:, : 1 + len(tokens)]
        if tokens == [3, 3]:
            scores[:, 2] = scores[:, 1]
        best = -np.inf
        for path in itertools.product(range(len(tokens) + 1), repeat=5):
            names = [None if column == 0 else tokens[column - 1] for column in path]
            merged = [name for place, name in enumerate(names) if place == 0 or name != names[place - 1]]
            if [name for name in merged if name is not None] == tokens:
                best = max(best, sum(scores[slot, column] for slot, column in enumerate(path)))
        found = align(torch.from_numpy(scores), tokens, blank=0, vocab_size=8)
        assert sum(scores[slot, place + 1] for slot, place in enumerate(found)) == pytest.approx(best)
