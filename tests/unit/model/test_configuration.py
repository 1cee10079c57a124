"""BnbConfig: defaults, round trip, and a message for each wrong value."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, BertConfig, DebertaV2Config, T5Config

from bnb_ds.errors import ConfigError
from bnb_ds.model.configuration import BnbConfig
from tests.tiny import bert_config, bnb_config


def test_defaults_are_two_bert_bases():
    config = BnbConfig()
    assert config.encoder.hidden_size == config.decoder.hidden_size == 768
    assert (config.latent_size, config.decoder_length, config.decoder_length_ratio) == (8, "source", 2.0)
    assert config.is_encoder_decoder
    assert config.vocab_size == 30522


def test_halves_are_told_apart_and_the_callers_objects_left_alone():
    bert = bert_config()
    config = BnbConfig(encoder=bert, decoder=bert)
    assert config.encoder is not bert
    assert config.encoder is not config.decoder
    assert not config.encoder.is_decoder
    assert config.decoder.is_decoder
    assert config.decoder.add_cross_attention
    assert not bert.is_decoder


def test_decoder_follows_the_encoder_by_default():
    config = BnbConfig(encoder=bert_config(num_hidden_layers=1))
    assert config.decoder.hidden_size == 12
    assert config.decoder.num_hidden_layers == 1


def test_dicts_are_read_as_bert_configurations():
    config = BnbConfig(encoder={"vocab_size": 99}, decoder={"vocab_size": 77, "model_type": "bert"})
    assert isinstance(config.encoder, BertConfig)
    assert (config.encoder.vocab_size, config.vocab_size) == (99, 77)


def test_save_and_load_give_the_same(tmp_path):
    config = bnb_config(decoder={"vocab_size": 31}, decoder_length_ratio=1.3, decoder_length_max=40, latent_dropout=0.1)
    config.save_pretrained(tmp_path)
    for loaded in (BnbConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, BnbConfig)
        assert loaded.decoder.to_dict() == config.decoder.to_dict()
        assert (loaded.decoder_length_ratio, loaded.decoder_length_max, loaded.latent_dropout) == (1.3, 40, 0.1)
        assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 2, 3)


def test_equality_sees_every_field():
    assert bnb_config() == bnb_config()
    assert bnb_config() != bnb_config(decoder_length_ratio=1.5)
    assert bnb_config() != bnb_config(decoder={"hidden_size": 15})
    assert bnb_config() != "a string"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent_size": 0}, "latent_size is 0: give a value of at least 1"),
        ({"latent_dropout": 1.0}, r"latent_dropout is 1.0: give a value of at least 0.0 and below 1.0"),
        ({"blank_token_id": 53}, "blank_token_id is 53: give a value of at least 0 and below 53"),
        ({"decoder_length_min": 0}, "decoder_length_min is 0: give a value of at least 1"),
        ({"decoder_length_ratio": 0.0}, "decoder_length_ratio is 0.0: give a number above 0"),
        ({"decoder_length_ratio": float("nan")}, "decoder_length_ratio is nan"),
        ({"decoder_length_ratio": float("inf")}, "decoder_length_ratio is inf"),
        ({"decoder_length_offset": 0.5}, "decoder_length_offset is 0.5: give a whole number"),
        ({"decoder_length_min": 9, "decoder_length_max": 8}, "decoder_length_max is 8: give a value of at least 9"),
        ({"decoder_length": "guess"}, "decoder_length is 'guess': use one of: source, padded, predicted"),
        ({"loss_reduction": "mean"}, "loss_reduction is 'mean': use one of: token, sample"),
        (
            {"loss_reduction": "sample", "decoder_length": "predicted"},
            "loss_reduction 'sample' needs decoder_length 'source' or 'padded': with 'predicted' use 'token'",
        ),
        (
            {"length_difference_min": 3, "length_difference_max": 2},
            "length_difference_max is 2: give a value of at least 3",
        ),
        ({"length_loss_weight": -0.1}, "length_loss_weight is -0.1: give a value of at least 0.0"),
        ({"kl_weight": float("nan")}, "kl_weight is nan: give a value of at least 0.0"),
        ({"kl_weight": float("inf")}, "kl_weight is inf: give a value of at least 0.0, and no infinite one"),
        (
            {"tie_encoder_decoder": True, "decoder": {"vocab_size": 31, "num_hidden_layers": 1}},
            "tie_encoder_decoder needs two halves of the same size, but these differ: vocab_size, num_hidden_layers",
        ),
        ({"decoder_positions": "relative"}, "decoder_positions is 'relative': use one of: absolute, shared"),
        ({"pair_separator_id": 5000}, "pair_separator_id is 5000: give a value of at least 0 and below 53"),
        (
            {"pair_separator_id": 3, "encoder": {"type_vocab_size": 1}},
            "gives the second of two texts another token type, but the encoder has one: leave it out",
        ),
        ({"decoder": {"type_vocab_size": 1}}, "decoder.type_vocab_size is 1: give 2 or more, or use 'absolute'"),
    ],
)
def test_wrong_values_are_refused_by_name(fields, message):
    with pytest.raises(ConfigError, match=message):
        bnb_config(**fields)


@pytest.mark.parametrize(
    ("half", "found"),
    [
        (T5Config(), r"'t5' \(it is an encoder-decoder, not an encoder\)"),
        (
            DebertaV2Config(),
            r"'deberta-v2' \(its attention adds terms for pairs of positions, which packed rows",
        ),
        ({"model_type": "gpt2"}, "'gpt2': give a checkpoint of one of: bert, roberta"),
        ({"model_type": "neobert"}, r"'neobert' \(its layers are remote code, which is never run\): give"),
        (12, "'int'"),
    ],
)
def test_other_architectures_are_refused(half, found):
    with pytest.raises(ConfigError, match=f"encoder: the model type is {found}"):
        BnbConfig(encoder=half)
