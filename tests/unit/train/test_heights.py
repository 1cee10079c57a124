"""Where weights lie, by their names, in every family of models; and what a recipe may say of them."""

from __future__ import annotations

import pytest

from bnb_ds.config.loading import load_recipe
from bnb_ds.errors import ConfigError
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.train.parameters.heights import Places, roles_of
from bnb_ds.train.parameters.unfreezing import Beginnings

BERT2BERT = [f"model.encoder.encoder.layer.{i}.output.dense.weight" for i in range(3)]
BERT2BERT += [f"model.decoder.bert.encoder.layer.{i}.output.dense.weight" for i in range(2)]
BNB = [f"model.{half}.layer.{i}.output.dense.weight" for half, n in (("encoder", 3), ("decoder", 2)) for i in range(n)]
GPT = [f"model.transformer.h.{i}.mlp.c_fc.weight" for i in range(3)]
T5 = [f"model.{half}.block.{i}.layer.0.SelfAttention.q.weight" for half in ("encoder", "decoder") for i in range(3)]


@pytest.mark.parametrize(
    ("model", "name", "half", "height"),
    [
        (BNB, "model.encoder.embeddings.LayerNorm.bias", "encoder", 4),
        (BNB, "model.encoder.layer.0.attention.self.query.lora_A.default.weight", "encoder", 3),
        (BNB, "model.encoder.layer.2.output.dense.weight", "encoder", 1),
        (BNB, "model.decoder.embeddings.word_embeddings.weight", "decoder", 3),
        (BNB, "model.decoder.layer.0.crossattention.self.key.bias", "decoder", 2),
        (BNB, "model.decoder.feedback.0.weight", "decoder", 2),
        (BNB, "model.decoder.embeddings.latent_projection.weight", "decoder", 0),
        (BNB, "model.decoder.embeddings.token_gate", "decoder", 0),
        (BNB, "model.latent.weight", None, 0),
        (BNB, "model.length_predictor.classifier.weight", None, 0),
        (BNB, "lm_head.transform.dense.weight", None, 0),
        (BNB, "links.positions.weight", None, 0),
        (BERT2BERT, "model.decoder.bert.embeddings.word_embeddings.weight", "decoder", 3),
        (BERT2BERT, "model.encoder.encoder.layer.0.intermediate.dense.bias", "encoder", 3),
        (BERT2BERT, "model.decoder.cls.predictions.bias", "decoder", 0),
        (GPT, "model.transformer.tokens_embed.weight", "encoder", 4),
        (GPT, "model.transformer.h.2.ln_1.weight", "encoder", 1),
        (GPT, "model.score.weight", None, 0),
        (T5, "model.shared.weight", None, 4),
        (T5, "model.decoder.block.0.layer.1.EncDecAttention.q.weight", "decoder", 3),
        (T5, "model.encoder.final_layer_norm.weight", "encoder", 0),
    ],
)
def test_height(model, name, half, height):
    places = Places([*model, name])
    assert (places.of(name).half, places.height(name)) == (half, height)


@pytest.mark.parametrize(
    ("module", "roles"),
    [
        ("model.encoder.layer.0.attention.self.query", {"query", "self-attention"}),
        ("model.decoder.layer.1.crossattention.self.value", {"value", "cross-attention"}),
        ("model.decoder.layer.1.crossattention.output.dense", {"attention-output", "dense", "cross-attention"}),
        ("model.decoder.layer.1.intermediate.dense", {"feed-forward", "dense"}),
        ("model.model.decoder.layers.0.encoder_attn.k_proj", {"key", "cross-attention"}),
        ("model.model.encoder.layers.0.self_attn.out_proj", {"attention-output", "dense", "self-attention"}),
        ("model.model.encoder.layers.0.fc2", {"feed-forward", "dense"}),
        ("model.transformer.h.0.attn.c_attn", {"query-key-value", "self-attention"}),
        ("model.transformer.h.0.attn.c_proj", {"attention-output", "dense", "self-attention"}),
        ("model.transformer.h.0.mlp.c_proj", {"feed-forward", "dense"}),
        ("model.encoder.block.0.layer.0.SelfAttention.o", {"attention-output", "dense", "self-attention"}),
        ("model.decoder.block.0.layer.1.EncDecAttention.q", {"query", "cross-attention"}),
        ("model.distilbert.transformer.layer.0.attention.q_lin", {"query", "self-attention"}),
        ("model.model.layers.0.attn.Wqkv", {"query-key-value", "self-attention"}),
        ("model.model.layers.0.mlp.Wo", {"feed-forward", "dense"}),
        ("model.pooler.dense", set()),
        ("lm_head.transform.dense", set()),
        ("model.decoder.feedback.0", set()),
    ],
)
def test_roles(module, roles):
    assert roles_of(module) == roles


def test_when_layers_begin():
    assert [Beginnings(10).step_of(height) for height in range(4)] == [1, 11, 21, 31]
    assert [Beginnings(10, layers=2).step_of(height) for height in range(5)] == [1, 11, 11, 21, 21]
    assert [Beginnings(10, top=1).step_of(height) for height in (1, 2)] == [1, 11]
    line = "unfreezing   3 groups of layers, from the top: one more every 10 steps"
    assert Beginnings(10).describe((0, 1, 2), 21) == f"{line}; all are trained from step 21"
    assert Beginnings(10).describe((0, 1, 2), 20).endswith("; the run ends before 1 of them begin")


RECIPE = "output_dir: o\nsteps: 4\ntask: sst2\nmodel: {kind: bnb, encoder: bert}\n"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lora.targets=[querry]", "lora.targets: unknown target 'querry': did you mean 'query'?"),
        ("lora.targets=[]", "lora.targets: List should have at least 1 item"),
        ("lora.rank=0", "lora.rank: Input should be greater than 0 (got 0)"),
        ("lora.alpha=-1", "lora.alpha: Input should be greater than 0 (got -1)"),
        ("lora.dropout=1", "lora.dropout: Input should be less than 1 (got 1)"),
        ("lora.also=[heads]", "lora.also: unknown part 'heads': did you mean 'head'?"),
        ("freeze=[encodr]", "freeze: unknown part 'encodr': did you mean 'encoder'?"),
        ("freeze=[encoder,decoder,head]", "freeze: encoder, decoder and head are the whole model; leave one of them"),
        ("layerwise_decay=0", "layerwise_decay: Input should be greater than 0 (got 0)"),
        ("layerwise_decay=1.1", "layerwise_decay: Input should be less than or equal to 1 (got 1.1)"),
        ("unfreezing={}", "unfreezing: give exactly one of steps and epochs"),
        ("unfreezing={steps: 1, epochs: 1}", "unfreezing: give exactly one of steps and epochs"),
    ],
)
def test_a_recipe_says_only_what_there_is(setting, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    with pytest.raises(ConfigError) as error:
        load_recipe(path, [setting], FinetuneRecipe)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting", ["lora={}", "freeze=[embeddings]"])
def test_random_weights_do_not_stay_as_they_are(setting, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("encoder: bert", "size: {hidden_size: 24}"))
    key = setting.partition("=")[0]
    with pytest.raises(
        ConfigError, match=f"{key}: model.kind bnb begins with random weights here, which would stay so"
    ):
        load_recipe(path, [setting], FinetuneRecipe)
    load_recipe(path, [setting, "model.encoder=bert", "model.size=null"], FinetuneRecipe)


def test_steps_between_beginnings(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    for setting, steps in (("{epochs: 0.5}", 10), ("{steps: 7}", 7), ("{epochs: 0.0001}", 1)):
        recipe = load_recipe(path, [f"unfreezing={setting}"], FinetuneRecipe)
        assert recipe.unfreezing.interval(samples_per_epoch=160, global_batch=8) == steps
