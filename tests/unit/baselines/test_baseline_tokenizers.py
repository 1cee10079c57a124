"""Tokenizers of baseline checkpoints, and messages for unusable tokenizers and weights."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BartConfig, BartForConditionalGeneration, OpenAIGPTConfig, PreTrainedTokenizerFast

from bnb_ds.baselines.build import read_seq2seq
from bnb_ds.baselines.tokenizers import read_tokenizer
from bnb_ds.errors import CheckpointError, DataError
from bnb_ds.tasks.codec import Frame


def write_json(path, **values):
    path.write_text(json.dumps(values))


def save_tokenizer(directory, **tokens):
    """Write a tokenizer of one word and the configuration of a BART."""
    backend = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **tokens).save_pretrained(directory)
    write_json(directory / "config.json", model_type="bart")
    return str(directory)


@pytest.mark.parametrize(
    ("tokens", "missing"),
    [
        ({}, "pad_token"),
        ({"pad_token": "<unk>"}, "eos_token"),
        ({"pad_token": "<unk>", "cls_token": "<unk>"}, "sep_token"),
    ],
)
def test_tokens_that_a_tokenizer_lacks(tmp_path, tokens, missing):
    directory = save_tokenizer(tmp_path / "bart", **tokens)
    with pytest.raises(DataError, match=f"bart: its tokenizer has no {missing}; add one to it"):
        read_tokenizer(directory)


def test_a_tokenizer_of_pythons_own(tmp_path):
    write_json(tmp_path / "config.json", model_type="t5")
    write_json(tmp_path / "tokenizer_config.json", tokenizer_class="ByT5Tokenizer")
    with pytest.raises(DataError, match=r": its tokenizer has no tokenizer\.json; save one with save_pretrained"):
        read_tokenizer(str(tmp_path))


def test_a_damaged_tokenizer(tmp_path):
    directory = save_tokenizer(tmp_path / "bart")
    (tmp_path / "bart" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"bart: cannot be read as a tokenizer: .*; restore it, or name another"):
        read_tokenizer(directory)


@pytest.mark.parametrize("name", ["no-such/bart", "work/models/absent"])
def test_checkpoints_that_are_not_there(name):
    with pytest.raises(CheckpointError, match=f"{name}: cannot be read as a model: .*; restore it, or name another"):
        read_tokenizer(name)


def test_a_weight_that_is_missing(tmp_path):
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1)
    config = BartConfig(vocab_size=53, d_model=12, encoder_ffn_dim=8, decoder_ffn_dim=8, **sizes)
    model = BartForConditionalGeneration(config)
    weights = model.state_dict()
    del weights["model.decoder.layers.0.fc2.bias"]
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(
        CheckpointError, match=r"lacks weights such as model\.decoder\.layers\.0\.fc2\.bias; name a who"
    ):
        read_seq2seq(tmp_path)


def test_the_tokenizer_of_openai_gpt_gets_the_tokens_of_fine_tuning(tmp_path):
    vocabulary = {token: number for number, token in enumerate(["<unk>", *"abcdefghijklmnopqrst"])}
    model = BPE(vocab=vocabulary, merges=[], unk_token="<unk>")
    backend = Tokenizer(model)
    backend.pre_tokenizer = Whitespace()
    plain = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    plain.save_pretrained(tmp_path)
    OpenAIGPTConfig(vocab_size=21).save_pretrained(tmp_path)
    found = read_tokenizer(str(tmp_path))
    encoded = found("a b", "c")["input_ids"]
    assert found.convert_ids_to_tokens(encoded) == ["_start_", "a", "b", "_delimiter_", "c", "_classify_"]
    assert found.pad_token_id == max(found.get_vocab().values())
    assert Frame.of(found, pair=True).size == 3
