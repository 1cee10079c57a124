"""docs/recipe_keys.md is what the sections say, and says of every key what it means."""

from __future__ import annotations

import importlib.util

import pytest

from bnb_ds.config.loading import load_recipe
from bnb_ds.config.sections import PretrainRecipe
from bnb_ds.finetune.recipe import FinetuneRecipe
from tests.launching import REPOSITORY

SCRIPT = REPOSITORY / "docs" / "recipe_keys.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("recipe_keys", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_sections(script):
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run: python docs/recipe_keys.py"


def test_every_key_has_a_meaning(script):
    rows = [line for line in script.page().splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.endswith("|  |")] == []
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows)
    written = {row.split("`")[1] for row in rows}
    assert written == script.keys(PretrainRecipe) | script.keys(FinetuneRecipe)


@pytest.mark.parametrize("key", ["data.shards", "faults.hang_seconds", "model.size.hidden_size", "data.split.seed"])
def test_known_keys_are_there(script, key):
    assert f"| `{key}` |" in script.page()


def leaves(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict) and name not in ("columns", "corruption", "documents", "shards"):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_key_of_a_shipped_recipe_is_on_the_page(script):
    known = script.keys(PretrainRecipe)
    for path in (REPOSITORY / "runs" / "recipes" / "pretrain").glob("*.yaml"):
        sections = {name.rpartition(".")[0] for name in known} | {"model.size", "glancing"}
        assert set(leaves(load_recipe(path).values())) - sections <= known, path
