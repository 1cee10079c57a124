"""Saving and loading through transformers' own classes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM
from transformers.models.bert.modeling_bert import BertEmbeddings

from bnb_ds import BnbConfig, BnbForConditionalGeneration, BnbModel
from bnb_ds.model.attention import IMPLEMENTATION
from tests.tiny import bnb_model, padded_form, source_ids

INPUTS = padded_form(source_ids([7, 1, 10]))


@pytest.fixture
def saved(tmp_path):
    model = bnb_model(dtype=torch.float32, decoder={"hidden_size": 15, "vocab_size": 41})
    model.save_pretrained(tmp_path)
    return model, tmp_path


@pytest.mark.parametrize("loader", [BnbForConditionalGeneration, AutoModelForSeq2SeqLM])
def test_loaded_model_gives_the_same_bits(saved, loader):
    model, directory = saved
    loaded, info = loader.from_pretrained(directory, output_loading_info=True)
    assert isinstance(loaded, BnbForConditionalGeneration)
    assert not any(info.values())
    assert torch.equal(loaded(**INPUTS).logits, model(**INPUTS).logits)
    assert torch.equal(loaded.generate(**INPUTS), model.generate(**INPUTS))


def test_the_bare_model_loads_from_the_full_one(saved):
    model, directory = saved
    loaded, info = AutoModel.from_pretrained(directory, output_loading_info=True)
    assert isinstance(loaded, BnbModel)
    assert not any(info.values())
    assert torch.equal(loaded(**INPUTS).last_hidden_state, model.model(**INPUTS).last_hidden_state)


def test_directory_is_a_hugging_face_export(saved):
    model, directory = saved
    config = json.loads((directory / "config.json").read_text())
    assert config["model_type"] == "bnb"
    assert config["architectures"] == ["BnbForConditionalGeneration"]
    assert "bnb_packed" not in json.dumps(config)
    generation = json.loads((directory / "generation_config.json").read_text())
    assert (generation["pad_token_id"], generation["bos_token_id"], generation["eos_token_id"]) == (0, 2, 3)
    with safe_open(directory / "model.safetensors", "pt") as weights:
        assert set(weights.keys()) == {name for name, _ in model.named_parameters()}


def test_the_configuration_of_a_saved_and_of_a_loaded_model_is_that_of_the_file(saved):
    model, directory = saved
    found = AutoConfig.from_pretrained(directory)
    assert found == model.config
    assert found == BnbForConditionalGeneration.from_pretrained(directory).config
    assert found == AutoModel.from_pretrained(directory).config
    in_half = BnbForConditionalGeneration.from_pretrained(directory, dtype=torch.bfloat16).config
    assert found != in_half, "the file says float32"
    in_half.dtype = torch.float32
    assert found == in_half
    for half in (found.encoder, found.decoder):
        half.vocab_size += 1
        assert found != in_half
        half.vocab_size -= 1


def test_loading_ignores_another_attention_implementation(saved):
    model, directory = saved
    loaded = BnbForConditionalGeneration.from_pretrained(directory, attn_implementation="sdpa")
    assert loaded.config.decoder._attn_implementation == IMPLEMENTATION
    assert torch.equal(loaded(**INPUTS).logits, model(**INPUTS).logits)


def test_loaded_models_have_sound_buffers(saved):
    # No checkpoint holds these buffers, and loading starts on the meta device.
    loaded = BnbForConditionalGeneration.from_pretrained(saved[1])
    (embeddings,) = (module for module in loaded.modules() if isinstance(module, BertEmbeddings))
    assert embeddings.position_ids.tolist() == [list(range(24))]
    assert not embeddings.token_type_ids.any()


def test_a_configuration_builds_the_model():
    config = BnbConfig(encoder={"hidden_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1})
    assert isinstance(AutoModelForSeq2SeqLM.from_config(config), BnbForConditionalGeneration)


def test_bare_model_class_is_the_base_of_the_full_one():
    model = bnb_model()
    assert isinstance(model.base_model, BnbModel)
    assert (model.can_generate(), model.base_model.can_generate()) == (True, False)
