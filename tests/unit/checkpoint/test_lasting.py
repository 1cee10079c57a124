"""Which settings of a recipe may change between the launches of a run."""

from __future__ import annotations

import pytest

from bnb_ds.checkpoint.lasting import lasting_recipe

CONSTANT = {"schedule": {"decay": "constant", "warmup_ratio": 0.0}}


@pytest.mark.parametrize(
    ("glancing", "is_free"),
    [
        (None, True),
        ({"start": 0.5, "end": 0.3, "steps": None}, False),
        ({"start": 0.5, "end": 0.3, "steps": 100}, True),
        ({"start": 0.5, "end": 0.5, "steps": None}, True),
    ],
)
def test_glancing_over_the_whole_run_makes_its_length_matter(glancing, is_free):
    """Its ratio of a step depends on the number of steps, as a decaying learning rate does."""
    short, long = ({"steps": steps, "epochs": None, "glancing": glancing, **CONSTANT} for steps in (10, 20))
    assert (lasting_recipe(short) == lasting_recipe(long)) == is_free
    assert lasting_recipe(short, extend=True) == lasting_recipe(long, extend=True)


def test_every_file_that_the_fingerprint_covers_may_lie_elsewhere():
    names = ("train", "validation", "test", "validation_matched", "validation_mismatched")
    names += ("documents", "tokenizer", "target_tokenizer")
    before, after = ({"data": {name: f"{folder}/{name}" for name in names}} for folder in ("old", "new"))
    assert lasting_recipe(before) == lasting_recipe(after)
