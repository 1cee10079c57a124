"""The file that says what a search varies."""

from __future__ import annotations

import pytest

from bnb_ds.errors import ConfigError
from bnb_ds.tune.space import Dimension, Settings, combinations, read_space

SPACE = """
deepspeed:
  optimizer.params.lr: {low: 1e-5, high: 1.0e-3, log: true}
  train_batch_size: [16, 32]
recipe:
  schedule.warmup_ratio: {low: 0, high: 0.2, step: 0.05}
  data.max_length: {low: 32, high: 128}
  schedule.decay: [linear, cosine]
"""


def test_a_space_is_read(tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)
    assert read_space(tmp_path / "space.yaml") == [
        Dimension("deepspeed", "optimizer.params.lr", (), 1e-5, 1e-3, True),
        Dimension("deepspeed", "train_batch_size", (16, 32)),
        Dimension("recipe", "schedule.warmup_ratio", (), 0, 0.2, False, 0.05),
        Dimension("recipe", "data.max_length", (), 32, 128),
        Dimension("recipe", "schedule.decay", ("linear", "cosine")),
    ]


def test_a_space_of_lists_has_combinations():
    space = [Dimension("recipe", "a", (1, None)), Dimension("deepspeed", "b", ("x",))]
    assert list(combinations(space)) == [
        {"recipe.a": "1", "deepspeed.b": '"x"'},
        {"recipe.a": "null", "deepspeed.b": '"x"'},
    ]
    assert list(combinations([*space, Dimension("recipe", "c", (), 0, 1)])) == []


def test_every_setting_is_changed_in_its_own_file():
    before = Settings({"schedule": {"decay": "linear"}}, {"optimizer": {"params": {"lr": 1.0}}})
    lr, ratio = Dimension("deepspeed", "optimizer.params.lr", (2,)), Dimension("recipe", "schedule.warmup_ratio", (3,))
    after = before.changed({lr: 2.0, ratio: 0.1, Dimension("recipe", "data.max_length", (4,)): 4})
    assert after.recipe == {"schedule": {"decay": "linear", "warmup_ratio": 0.1}, "data": {"max_length": 4}}
    assert after.deepspeed == {"optimizer": {"params": {"lr": 2.0}}}
    assert before.deepspeed == {"optimizer": {"params": {"lr": 1.0}}}
    with pytest.raises(ConfigError, match=r"--space: recipe.schedule.decay.deep: decay is a value, not a section"):
        before.changed({Dimension("recipe", "schedule.decay.deep", (1,)): 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: [", "not valid YAML: "),
        ("recipe: 2020-13-45", "not valid YAML: month must be in 1..12"),
        ("", "give the blocks recipe and deepspeed, or one of them"),
        ("lr: [1]", "give the blocks recipe and deepspeed, or one of them"),
        ("recipe: [1]", "recipe: name settings and their values"),
        ("recipe: {seed: []}", "recipe.seed: the list of values is empty"),
        ("recipe: {seed: 3}", "recipe.seed: give a list of values, or low and high, with log or step if you like"),
        ("recipe: {seed: {low: 1, high: 2, max: 3}}", "recipe.seed: give a list of values, or low and high"),
        ("recipe: {seed: {low: 2, high: 2}}", "recipe.seed: low must be a number below high, and step a number"),
        ("recipe: {seed: {low: a, high: 2}}", "recipe.seed: low must be a number below high, and step a number"),
        ("recipe: {a: {low: 0, high: 2, log: true}}", "recipe.a: log is true or false; a logarithmic range begins abo"),
        ("recipe: {a: {low: 1, high: 2, log: true, step: 1}}", "recipe.a: log is true or false; a logarithmic range"),
        ("recipe: {a: {low: 1, high: 2, step: 0}}", "recipe.a: step must be above 0"),
        ("recipe: {output_dir: [a, b]}", "recipe.output_dir: each trial has its own; remove it"),
    ],
)
def test_spaces_that_are_refused(tmp_path, text, message):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_space(path)
    assert str(refused.value).startswith(f"--space {path}: {message}")


def test_a_space_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"--space .*gone.yaml: cannot be read: .*No such file"):
        read_space(tmp_path / "gone.yaml")
