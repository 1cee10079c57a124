"""The model that most tests of the service run."""

from __future__ import annotations

import pytest

from bnb_ds.generate.pipeline import BnbPipeline
from tests.exports import save_model


@pytest.fixture(scope="module")
def exported(small_tokenizer, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("served") / "model", small_tokenizer)


@pytest.fixture(scope="module")
def pipeline(exported):
    return BnbPipeline.from_pretrained(exported, device="cpu")
