"""Recipes, DeepSpeed JSONs and programs are found by name, in a checkout and beside an installed package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jsonschema_rs
import pytest
import yaml

from bnb_ds.cli import main
from bnb_ds.common import shipped
from bnb_ds.config.deepspeed import load_ds_config
from bnb_ds.config.loading import load_recipe
from bnb_ds.finetune.recipe_schema import field_comments, recipe_schema
from bnb_ds.pretrain.plan import PretrainRecipe

REPOSITORY = Path(__file__).resolve().parents[3]
TINY = REPOSITORY / "runs" / "recipes" / "pretrain" / "tiny.yaml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A directory without any of the files."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["runs/recipes/pretrain/tiny.yaml", "pretrain/tiny.yaml", "pretrain/tiny"])
def test_a_recipe_is_found_by_its_name(name):
    assert shipped.find_recipe(name) == TINY
    assert load_recipe(name, ["steps=3"]).steps == 3


@pytest.mark.parametrize("name", ["ds_configs/cpu_debug.json", "cpu_debug.json", "cpu_debug"])
def test_a_deepspeed_json_is_found_by_its_name(name):
    assert load_ds_config(name, 2).path == REPOSITORY / "ds_configs" / "cpu_debug.json"


def test_a_users_own_file_comes_first(tmp_path):
    mine = tmp_path / "runs" / "recipes" / "pretrain" / "tiny.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text(TINY.read_text().replace("steps: 200", "steps: 7").replace("seed:", "seed: 5 #"))
    assert shipped.find_recipe("runs/recipes/pretrain/tiny.yaml") == Path("runs/recipes/pretrain/tiny.yaml")
    assert load_recipe("runs/recipes/pretrain/tiny.yaml").seed == 5


@pytest.mark.parametrize("name", ["tiny", "pretrain/tiny.yml", "../runs/recipes/pretrain/tiny.yaml", "/pretrain/tiny"])
def test_other_names_stay_what_they_are(name):
    assert shipped.find_recipe(name) == Path(name)


def test_a_pattern_that_no_file_matches_stands_for_shipped_recipes():
    found = shipped.expand_recipes(["mine.yaml", "runs/recipes/finetune/glue/s*.yaml"])
    assert found == ["mine.yaml", "finetune/glue/sst2", "finetune/glue/stsb"]
    assert shipped.expand_recipes(["nothing/*.yaml"]) == ["nothing/*.yaml"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("pretrain", "runs/pretrain.py"),
        ("hostfile", "runs/launch/hostfile.sh"),
        ("slurm-prep", "runs/slurm/prep.sbatch"),
        ("finetune/xsum", "runs/recipes/finetune/xsum.yaml"),
        ("cpu_debug", "ds_configs/cpu_debug.json"),
        ("runs/recipes/finetune", "runs/recipes/finetune"),
    ],
)
def test_path(name, path, capsys):
    assert main(["path", name]) == 0
    assert capsys.readouterr().out == f"{REPOSITORY / path}\n"


@pytest.mark.parametrize("name", ["tiny", "runs/../setup.py", "setup.py"])
def test_a_path_that_is_not_shipped_is_one_line(name, capsys):
    assert main(["path", name]) == 2
    said = capsys.readouterr().err
    hint = "did you mean pretrain/tiny? " if name == "tiny" else ""
    assert said == f"bnb-ds: error: {name}: nothing of this name is shipped; {hint}`bnb-ds recipes` lists the names\n"


def test_every_recipe_and_json_is_listed_with_its_purpose(capsys):
    assert main(["recipes"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line)
    assert {*shipped.recipes(), *shipped.ds_configs()} <= set(lines)
    assert lines["pretrain/tiny"].startswith("A small model for quick trials")
    assert lines["cpu_debug"] == "batch 16, fp32, ZeRO 1, AdamW, learning rate 0.001"
    assert lines["a100_autocast_lamb"] == "batch 8192, autocast, ZeRO 0, Lamb, learning rate 0.002"


def test_a_recipe_is_shown_and_copied_once(tmp_path, capsys):
    assert main(["recipes", "--show", "pretrain/tiny"]) == 0
    assert capsys.readouterr().out == TINY.read_text()
    assert main(["recipes", "--copy", "pretrain/tiny", "mine/tiny.yaml"]) == 0
    assert (tmp_path / "mine" / "tiny.yaml").read_text() == TINY.read_text()
    assert main(["recipes", "--copy", "cpu_debug", "mine/tiny.yaml"]) == 2
    assert "mine/tiny.yaml: already exists; remove it or choose another output" in capsys.readouterr().err
    assert main(["recipes", "--show", "hostfile"]) == 2
    assert "hostfile: is neither a recipe nor a DeepSpeed JSON" in capsys.readouterr().err


def test_the_schema_accepts_shipped_recipes_and_refuses_what_loading_refuses():
    schema = jsonschema_rs.Draft202012Validator(recipe_schema())
    for path in shipped.recipes().values():
        assert [fault.message for fault in schema.iter_errors(yaml.safe_load(path.read_text()))] == [], path
    values = yaml.safe_load(TINY.read_text())
    for change in ({"stepz": 3}, {"steps": -1}, {"task": "xsun"}, {"objective": {"corruption": "mml"}}):
        assert not schema.is_valid({**values, **change}), change


def test_the_schema_says_what_a_key_means():
    loader = recipe_schema()["$defs"]["LoaderSection"]["properties"]
    assert loader["workers"]["description"] == "threads per rank that prepare batches"
    assert field_comments(PretrainRecipe)["steps"] == "optimizer steps of the run; give this or ``epochs``"


def test_the_programs_are_modules_and_commands_too(capsys):
    """`python -m bnb_ds.pretrain`, `runs/pretrain.py` and `bnb-ds pretrain` refuse a recipe alike."""
    arguments = ["pretrain/none", "--deepspeed_config", "cpu_debug"]
    assert main(["pretrain", *arguments]) == 2
    assert main(["finetune", *arguments]) == 2
    said = "error: pretrain/none: no such recipe; `bnb-ds recipes` lists the shipped ones\n"
    assert capsys.readouterr().err == f"bnb-ds: {said}" * 2
    for module in ("pretrain", "finetune"):
        shown = subprocess.run(
            [sys.executable, "-m", f"bnb_ds.{module}", "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert shown.startswith(f"usage: {module}.py [-h] --deepspeed-config JSON")
