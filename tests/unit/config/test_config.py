"""Recipes: defaults, overrides, and one error line that names every fault and its remedy."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import yaml

from bnb_ds.config.loading import differences, dump_recipe, load_recipe
from bnb_ds.config.sections import LoaderSection, PretrainRecipe
from bnb_ds.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[3]
MINIMAL = {"output_dir": "out", "steps": 5, "data": {"shards": "shards"}}


@pytest.fixture
def write(tmp_path):
    def write_recipe(values) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
        return path

    return write_recipe


def test_defaults_are_the_paper(write):
    recipe = load_recipe(write(MINIMAL))
    assert recipe.objective.mask_probability == 0.15
    assert recipe.objective.permute_probability == 0.5
    assert recipe.data.max_length == 512
    assert recipe.model.latent_size == 8
    assert recipe.schedule.warmup_ratio == 0.05


def test_dump_is_read_back_equal(write):
    recipe = load_recipe(write({**MINIMAL, "model": {"size": {"hidden_size": 128, "num_attention_heads": 2}}}))
    assert load_recipe(write(dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(("section", "key"), [("data", "shards"), ("objective", "corruption")])
def test_whole_numbers_are_weights_too_and_are_written_without_a_warning(write, section, key):
    weights = {"mlm": 3, "clm": 1}
    recipe = load_recipe(write({**MINIMAL, section: {key: weights}}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recipe.values()[section][key] == weights
        assert load_recipe(write(dump_recipe(recipe))) == recipe


def test_a_dump_leaves_open_what_a_checkpoint_decides(write):
    recipe = load_recipe(write({**MINIMAL, "model": {"checkpoint": "a", "latent_dropout": 0.1}}))
    again = load_recipe(write(dump_recipe(recipe)))
    assert again == recipe
    assert again.model.model_fields_set == {"checkpoint", "latent_dropout"}


@pytest.mark.parametrize("path", sorted((REPOSITORY / "runs/recipes/pretrain").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_recipes_are_valid(path):
    assert isinstance(load_recipe(path), PretrainRecipe)


def test_overrides_replace_values_and_make_sections(write):
    recipe = load_recipe(write(MINIMAL), ["data.max_length=128", "objective.corruption=mlm", "epochs=0.5"])
    assert recipe.data.max_length == 128
    assert recipe.objective.corruption == "mlm"
    assert (recipe.steps, recipe.epochs) == (None, 0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.max_length", "override 'data.max_length': write it as key.path=value"),
        ("=5", "override '=5': write it as key.path=value"),
        ("steps=[1", "override 'steps=[1': the value is not valid YAML; quote it"),
        ("steps=2020-13-45", "override 'steps=2020-13-45': the value is not valid YAML; quote it"),
        ("steps.more=1", "override 'steps.more=1': steps is a value, not a section"),
    ],
)
def test_bad_override(write, override, message):
    with pytest.raises(ConfigError) as error:
        load_recipe(write(MINIMAL), [override])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"setps": 3}, "unknown key 'setps': did you mean 'steps'?"),
        ({"data": {"shards": "s", "max_lenght": 3}}, "unknown key 'data.max_lenght': did you mean 'max_length'?"),
        ({"model": {"size": {"hiden_size": 3}}}, "unknown key 'model.size.hiden_size': did you mean 'hidden_size'?"),
        ({"data": {}}, "data.shards: this field is required"),
        ({"data": {"shards": "s", "max_length": 2}}, "data.max_length: Input should be greater than or equal to 3"),
        (
            {"data": {"shards": "s", "max_length": 65537}},
            "data.max_length: Input should be less than or equal",
        ),
        (
            {"objective": {"corruption": "noise"}},
            "objective.corruption: unknown objective 'noise': known: ae, clm, infill, mlm, mlm+plm, plm",
        ),
        ({"steps": None, "epochs": float("inf")}, "epochs: Input should be a finite number"),
        ({"epochs": 1.0}, "give exactly one of steps and epochs"),
        ({"steps": None}, "give exactly one of steps and epochs"),
        ({"model": {"encoder": "a", "size": {}}}, "give encoder or size, not both"),
        ({"model": {"decoder": "a"}}, "decoder needs encoder"),
        (
            {"model": {"checkpoint": "a", "size": {}}},
            "model: give checkpoint or size, not both: a checkpoint is a whole model",
        ),
        (
            {"model": {"max_position_embeddings": 64}},
            "model: max_position_embeddings applies to BERT checkpoints; without one",
        ),
        ({"model": {"size": {"hidden_size": 10, "num_attention_heads": 3}}}, "hidden_size 10 is not a multiple of"),
    ],
)
def test_bad_value(write, change, message):
    path = write({**MINIMAL, **change})
    with pytest.raises(ConfigError) as error:
        load_recipe(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"corruption": {"mlm": 1, "clr": 1}}, "objective.corruption: unknown objective 'clr': did you mean 'clm'?"),
        ({"corruption": {"mlm": -1}}, "objective.corruption: the weight of mlm is -1: give a number of at least 0"),
        ({"corruption": {"mlm": True}}, "objective.corruption: the weight of mlm is True: give a number"),
        ({"corruption": {"mlm": "x"}}, "objective.corruption: the weight of mlm is 'x': give a number"),
        ({"corruption": {"mlm": float("inf")}}, "objective.corruption: the weight of mlm is inf: give a number"),
        (
            {"corruption": {"mlm": 0}},
            "objective.corruption: no objective has a weight above 0: give at least one, for example",
        ),
        ({"corruption": {}}, "objective.corruption: no objective has a weight above 0"),
        (
            {"corruption": 5},
            "objective.corruption: give ae, mlm, plm, mlm+plm, clm, infill, or several with",
        ),
        (
            {"corruption": ["mlm"]},
            "objective.corruption: give ae, mlm, plm, mlm+plm, clm, infill, or several with",
        ),
        (
            {"corruption": "plm", "encoder_mlm_weight": 0.5},
            "objective: encoder_mlm_weight needs masked tokens: give mlm",
        ),
        ({"mask_probability": 0, "encoder_mlm_weight": 0.5}, "objective: encoder_mlm_weight needs masked tokens"),
        ({"encoder_mlm_weight": -1}, "objective.encoder_mlm_weight: Input should be greater than or equal to 0"),
    ],
)
def test_bad_objective(write, objective, message):
    with pytest.raises(ConfigError) as error:
        load_recipe(write({**MINIMAL, "objective": objective}))
    assert message in str(error.value)


def test_objectives_by_weight(write):
    assert load_recipe(write(MINIMAL)).objective.mixture == {"mlm+plm": 1.0}
    path = write({**MINIMAL, "objective": {"corruption": {"mlm+plm": 3, "clm": 0.5}, "encoder_mlm_weight": 0.1}})
    assert load_recipe(path).objective.mixture == {"mlm+plm": 3, "clm": 0.5}
    assert load_recipe(path, ["objective.corruption={ae: 1, plm: 2}", "objective.encoder_mlm_weight=0"]).objective


def test_a_token_budget_holds_the_longest_sample(write):
    with pytest.raises(ConfigError) as error:
        load_recipe(write(MINIMAL), ["loader.micro_batch_tokens=511"])
    assert str(error.value).endswith(
        "loader.micro_batch_tokens 511: a sample can have 512 tokens (data.max_length); give at least 512"
    )
    assert load_recipe(write(MINIMAL), ["loader.micro_batch_tokens=512"]).loader.micro_batch_tokens == 512


def test_all_faults_are_named_at_once(write):
    with pytest.raises(ConfigError) as error:
        load_recipe(write({"output_dir": "o", "setps": 3, "data": {}, "seed": -1}))
    for fault in ("unknown key 'setps'", "data.shards: this field is required", "seed: Input should be"):
        assert fault in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "a recipe is a mapping of keys to values"),
        ("a: [1", "not valid YAML"),
        ("a: 2020-13-45", "not valid YAML: month must be in 1..12"),
        ("a: {b: 1, b: 2}", "key 'b' is given twice; keep one"),
        (b"\xff\xfe", "cannot be read as a recipe"),
    ],
)
def test_unreadable_recipe(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_missing_recipe_names_the_way_out(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such recipe; `bnb-ds recipes` lists the shipped ones"):
        load_recipe(tmp_path / "none.yaml")


def test_differences_lists_every_leaf():
    ours = {"a": 1, "b": {"c": 2, "d": 3}, "e": 5}
    theirs = {"a": 1, "b": {"c": 9, "d": 3}}
    assert list(differences(ours, theirs)) == ["b.c: 9 -> 2", "e: None -> 5"]


def test_the_example_in_the_documents_is_a_recipe(write):
    page = (REPOSITORY / "docs" / "pretraining.md").read_text()
    values: dict = {}
    for example in re.findall(r"```yaml\n(data:.*?)```", page, re.DOTALL):
        values |= yaml.safe_load(example)
    recipe = load_recipe(write({**MINIMAL, **values, "data": {**MINIMAL["data"], **values["data"]}}))
    assert recipe.objective.mixture == {"mlm+plm": 3, "clm": 1}
    # Every field that can be set there is shown.
    assert set(values["loader"]) == set(LoaderSection.model_fields)
