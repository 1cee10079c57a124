"""A manifest of a checkpoint that is damaged is damage like that of any other file: an older checkpoint is used."""

from __future__ import annotations

import json

import pytest

from bnb_ds.checkpoint import store

DAMAGED = ["", "[]", "3", "null", '{"files": []}', '{"files": {"a": {}}}', '{"files": {"a": 3}}', '{"fills": {}}']


def checkpoint(folder, step: int, content: str):
    path = folder / f"step_{step:08d}"
    path.mkdir()
    (path / "a").write_text("x")
    (path / "checkpoint.json").write_text(content)
    return path


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_manifest_is_passed_over(tmp_path, content):
    good = checkpoint(tmp_path, 1, json.dumps({"files": {}, "selection_loss": 2.0}))
    bad = checkpoint(tmp_path, 2, content)
    assert store.newest_intact(tmp_path) == (
        good,
        [f"{bad}: checkpoint.json cannot be read; an older checkpoint is used"],
    )
    assert store.best_checkpoint([good, bad]) == good


@pytest.mark.parametrize("score", ['"x"', "[1]", "NaN", "null", "true"])
def test_a_score_that_is_no_number_wins_nowhere(tmp_path, score):
    assert store.selection_loss(checkpoint(tmp_path, 1, f'{{"files": {{}}, "selection_loss": {score}}}')) is None
