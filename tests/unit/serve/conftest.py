"""The model that most tests of the service run."""

from __future__ import annotations

import pytest

from bnb_ds.generate.pipeline import BnbPipeline
from tests.exports import MAX_TOKENS, save_model


@pytest.fixture(scope="module")
def exported(small_tokenizer, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("served") / "model", small_tokenizer)


@pytest.fixture(scope="module")
def pipeline(exported):
    return BnbPipeline.from_pretrained(exported, device="cpu")


@pytest.fixture(scope="module")
def graph(small_tokenizer, tmp_path_factory):
    """The pipeline of a graph of slots."""
    fields = {"target": "dag", "decoder_positions": "absolute", "decoder_length_max": MAX_TOKENS, "link_positions": 128}
    folder = save_model(tmp_path_factory.mktemp("graph") / "model", small_tokenizer, **fields)
    return BnbPipeline.from_pretrained(folder, device="cpu")
