"""Which kinds of models may be refined: those whose decoder has read tokens of an output in training."""

from __future__ import annotations

import re

import pytest
import yaml
from pydantic import ValidationError

from bnb_ds.bench.frontier.contestants import open_model
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.errors import ConfigError
from bnb_ds.evaluate.model import evaluate_model
from bnb_ds.finetune.plan import make_system
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.systems.shown_targets import why_not_refined
from tests.unit.baselines.test_nar_kinds import SIZE, saved, section_of, tokenizer

REFINABLE = {"decoder_length": "predicted", "decoder_tokens": True}
UNSEEN = "its passes show tokens to the decoder, which saw none in training"


@pytest.mark.parametrize(
    ("kind", "fields", "recipe", "why_not"),
    [
        ("nat", {}, {}, "kind nat without glancing); set it to 0, or train with glancing"),
        ("elmer", {}, {}, "kind elmer without glancing); set it to 0, or train with glancing"),
        ("inat", {"iterations": 1}, {"passes": 1}, "kind inat with passes 1); set it to 0, or train with more passes"),
        ("bnb", REFINABLE, {}, "kind bnb without glancing); set it to 0, or train with glancing"),
    ],
)
def test_a_decoder_that_saw_no_tokens_in_training_is_not_refined(tmp_path, kind, fields, recipe, why_not):
    model = saved(tmp_path / "model", kind, **fields)
    trained = {"model": {"kind": kind, "checkpoint": None, **recipe}, "data": {}, "glancing": None}
    (model / "recipe.yaml").write_text(yaml.safe_dump(trained))
    message = re.escape(f"refinement is 3: {UNSEEN} ({why_not}")
    with pytest.raises(ConfigError, match=message):
        evaluate_model(model, decoding={"refinement": 3})
    with pytest.raises(ConfigError, match=message):
        open_model(model, {"refinement": 3}, split=None, overrides=[], dtype="fp32", device="cpu")
    with pytest.raises(ConfigError, match=message):
        BnbPipeline.from_pretrained(model, device="cpu", refinement=3)
    pipeline = BnbPipeline.from_pretrained(model, device="cpu")
    with pytest.raises(ConfigError, match=message):  # as a request of the service
        pipeline.engine.check(DecodeOptions(refinement=3), with_scores=False)
    for shown in (
        {**trained, "glancing": {"start": 0.5}},
        {**trained, "model": {"kind": kind, "checkpoint": "pretrained"}},
        {"task": "translation", "data": {}},
    ):
        (model / "recipe.yaml").write_text(yaml.safe_dump(shown))
        BnbPipeline.from_pretrained(model, device="cpu", refinement=3)


def test_kinds_that_show_tokens_are_refined():
    for kind, model in (("cmlm", {}), ("inat", {"passes": 4}), ("inat", {})):
        assert why_not_refined(kind, {"model": model, "glancing": None}) is None


def test_a_recipe_that_will_refine_shows_tokens_in_training(tmp_path):
    tokenizer().save_pretrained(tmp_path)
    values = {
        "output_dir": "run",
        "steps": 1,
        "task": "translation",
        "model": {"kind": "bnb", "size": SIZE, "decoding": {"refinement": 2}, **REFINABLE},
        "data": {"tokenizer": str(tmp_path), "max_source_length": 20, "max_target_length": 12},
    }
    with pytest.raises(ConfigError, match=rf"^model\.decoding\.refinement is 2: {UNSEEN} \(kind bnb without glancing"):
        make_system(FinetuneRecipe.model_validate(values))
    make_system(FinetuneRecipe.model_validate({**values, "glancing": {}}))
    with pytest.raises(
        ValidationError, match=r"passes is 1, so no pass reads .* iterations is 10: set iterations to 1, or"
    ):
        section_of("inat", passes=1)
