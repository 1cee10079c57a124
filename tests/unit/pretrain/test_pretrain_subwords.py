"""Pre-training on shards of tokenizers beside BERT's: what a launch decides before it begins."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertConfig, BertModel

from bnb_ds.config.loading import load_recipe
from bnb_ds.data.tokenization import load_tokenizer, save_tokenizer
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.generate.reconstruct import reconstructions
from bnb_ds.model_factory import build_model, model_config
from bnb_ds.pretrain.plan import describe_dry_run, make_plan
from bnb_ds.shards.reader import TokenShards
from bnb_ds.tasks.codec import Codec
from data_prep.sources.documents import Document
from tests.shard_building import build_shards
from tests.subwords import byte_level, texts

SIZE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def shards_of(tokenizer, directory):
    documents = (Document(str(i), text, "") for i, text in enumerate(texts()[:40]))
    build_shards(documents, directory, tokenizer, holdout=0.2)
    return directory


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return shards_of(byte_level(), tmp_path_factory.mktemp("shards") / "s")


@pytest.fixture(scope="module")
def maskless(tmp_path_factory):
    """Shards of a tokenizer without a mask token."""
    state = json.loads(byte_level().backend_tokenizer.to_str())
    state["model"]["vocab"]["x no mask"] = state["model"]["vocab"].pop("<mask>")
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != "<mask>"]
    path = tmp_path_factory.mktemp("maskless")
    Tokenizer.from_str(json.dumps(state)).save(str(path / "tokenizer.json"))
    return shards_of(load_tokenizer(path), path / "s")


@pytest.fixture
def settings(tmp_path):
    def write(shards, **extra):
        size = {**SIZE, "max_position_embeddings": 64}
        recipe = {"output_dir": str(tmp_path / "out"), "epochs": 1, "model": {"size": size}, **extra}
        recipe["data"] = {"shards": str(shards), "max_length": 32}
        ds = {"train_batch_size": 4, "train_micro_batch_size_per_gpu": 4}
        (tmp_path / "r.yaml").write_text(json.dumps(recipe))
        optimizer = {"type": "AdamW", "params": {"lr": 1e-4}}
        (tmp_path / "d.json").write_text(json.dumps({**ds, "optimizer": optimizer}))
        return str(tmp_path / "r.yaml"), [], str(tmp_path / "d.json"), 1

    return write


def test_special_ids_and_the_blank_follow_the_tokenizer(shards, settings):
    plan = make_plan(*settings(shards, objective={"corruption": "mlm+plm", "whole_word": True}))
    config = model_config(plan.recipe.model, plan.train_shards, 32)
    ids = (config.blank_token_id, config.pad_token_id, config.bos_token_id, config.eos_token_id, config.mask_token_id)
    assert ids == (1, 1, 0, 2, 4)
    assert config.encoder.pad_token_id == config.decoder.pad_token_id == 1
    assert any("objective    mlm+plm" in line for line in describe_dry_run(plan))
    samples = plan.samples(plan.train_shards, config)
    assert samples.original(samples.to_evaluate(1))[0][[0, -1]].tolist() == [0, 2]


@pytest.mark.parametrize("objective", ["mlm", "mlm+plm", "infill"])
def test_an_objective_that_masks_needs_a_mask_token(maskless, settings, objective):
    with pytest.raises(ConfigError) as error:
        make_plan(*settings(maskless, objective={"corruption": {objective: 1, "ae": 1}}))
    assert str(error.value) == (
        f"objective.corruption {objective}: needs a mask token, and the tokenizer of data.shards has none; use ae, plm"
        " or clm, or name one in tokenizer_config.json and prepare the data again"
    )


def test_other_objectives_need_none(maskless, settings):
    plan = make_plan(*settings(maskless, objective={"corruption": {"ae": 1, "plm": 1, "clm": 1, "mlm": 0}}))
    config = model_config(plan.recipe.model, plan.train_shards, 32)
    assert config.mask_token_id is None
    samples = plan.samples(plan.train_shards, config)
    batch = samples.batch(samples.to_evaluate(4), samples.to_evaluate(4) * 0)
    assert int(batch.input_ids.min()) >= 0
    recipe = settings(maskless, model={"size": SIZE, "decoder_tokens": True}, objective={"corruption": "ae"})
    with pytest.raises(ConfigError, match=r"decoder_tokens needs mask_token_id, the id of \[MASK\]: give it"):
        model_config(make_plan(*recipe).recipe.model, plan.train_shards, 32)


def test_reconstructions_without_a_mask_token(maskless, settings, tmp_path):
    plan = make_plan(*settings(maskless, objective={"corruption": "ae"}))
    model = build_model(plan.recipe.model, plan.train_shards, 32)
    model.save_pretrained(tmp_path / "model")
    Codec(plan.tokenizer, plan.tokenizer).save(tmp_path / "model")
    arguments = {"num_documents": 1, "max_length": 32, "seed": 0}
    with pytest.raises(ConfigError, match=r"--mask-probability 0.5: the tokenizer of .* has no mask token; give"):
        list(reconstructions(tmp_path / "model", maskless, mask_probability=0.5, **arguments))
    ((source, _, original),) = reconstructions(tmp_path / "model", maskless, mask_probability=0.0, **arguments)
    assert source == original


def test_a_saved_model_reads_and_writes_with_its_own_tokenizer(shards, settings, tmp_path):
    plan = make_plan(*settings(shards))
    torch.manual_seed(0)
    build_model(plan.recipe.model, plan.train_shards, 32).save_pretrained(tmp_path / "model")
    Codec(plan.tokenizer, plan.tokenizer).save(tmp_path / "model")
    pipeline = BnbPipeline.from_pretrained(tmp_path / "model", device="cpu", bad_words=["the"])
    ((source, other), _) = pipeline.encode(["the<mask> “é”", "</s>"])
    assert source == plan.tokenizer("the<mask> “é”")["input_ids"]
    assert not {0, 1, 2, 3, 4}.intersection(other[1:-1])
    (output,) = pipeline.generate(["the<mask> “é”"])
    assert output.text == " ".join(plan.tokenizer.decode(output.tokens, skip_special_tokens=True).split())
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("naïve")["input_ids"] == byte_level()("naïve")["input_ids"]


def test_a_checkpoint_and_shards_that_do_not_belong_together(shards, small_shards, settings, tmp_path):
    torch.manual_seed(0)
    bert = tmp_path / "bert"
    BertModel(BertConfig(vocab_size=500, pad_token_id=1, **SIZE)).save_pretrained(bert)
    save_tokenizer(byte_level(), bert)
    recipe = load_recipe(settings(shards)[0], ["model.size=null", f"model.encoder={bert}"])
    with pytest.raises(DataError, match=r"bert: its tokenizer is not the one that data\.shards was made with"):
        build_model(recipe.model, TokenShards(small_shards, "train"), 32)
    with pytest.raises(DataError, match=r"model\.encoder: its vocabulary has 500 tokens, the shards 600; prepare"):
        build_model(recipe.model, TokenShards(shards, "train"), 32)
