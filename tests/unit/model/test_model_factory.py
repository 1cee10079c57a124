"""The recipe's model section: training an exported model further, and every setting that reaches the model."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel

from bnb_ds.config.model_section import ModelSection
from bnb_ds.data.tokenization import TokenizerVocabulary
from bnb_ds.errors import CheckpointError, ConfigError, DataError
from bnb_ds.model_factory import build_model, model_config, refuse_equal_slots
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration
from bnb_ds.shards.reader import TokenShards
from tests.backbones import save_checkpoint
from tests.tiny import bnb_model

SIZE = {
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def shards(small_shards):
    return TokenShards(small_shards, "train")


def test_random_weights_have_the_recipe_s_standard_deviation(shards):
    size = {**SIZE, "hidden_size": 96, "initializer_range": 0.1}
    model = build_model(ModelSection(size=size), shards, 32)
    for half in (model.model.encoder, model.model.decoder):
        weights = [weight for name, weight in half.named_parameters() if name.endswith("query.weight")]
        assert weights
        for weight in weights:
            assert 0.095 < weight.std().item() < 0.105


@pytest.fixture
def checkpoint(tmp_path, shards, small_tokenizer):
    """A saved model and its directory."""
    halves = {half: {**SIZE, "vocab_size": shards.vocab_size} for half in ("encoder", "decoder")}
    model = bnb_model(dtype=torch.float32, **halves, kl_weight=0.2, decoder_length_ratio=1.5, latent_dropout=0.3)
    model.save_pretrained(tmp_path / "model")
    small_tokenizer.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def section(directory, **fields) -> ModelSection:
    return ModelSection(checkpoint=str(directory), **fields)


def test_a_whole_model_is_trained_on_with_its_own_settings(checkpoint, shards):
    saved, directory = checkpoint
    model = build_model(section(directory), shards, 32)
    assert all(torch.equal(weight, saved.state_dict()[name]) for name, weight in model.state_dict().items())
    config = model.config
    assert (config.kl_weight, config.decoder_length_ratio, config.latent_dropout) == (0.2, 1.5, 0.3)


def test_what_the_recipe_says_takes_the_place_of_that(checkpoint, shards):
    saved, directory = checkpoint
    chosen = section(directory, decoder_length="predicted", latent_dropout=0.0, hidden_dropout=0.4)
    model = build_model(chosen, shards, 32)
    assert (model.config.decoder_length, model.config.latent_dropout, model.config.kl_weight) == ("predicted", 0.0, 0.2)
    assert model.config.encoder.hidden_dropout_prob == model.config.decoder.hidden_dropout_prob == 0.4
    assert model.config.encoder.attention_probs_dropout_prob == 0.1
    assert torch.equal(model.model.latent.weight, saved.model.latent.weight)
    assert model.model.length_predictor.classifier.weight.isfinite().all()


def test_pairs_may_have_two_token_types(checkpoint, tmp_path, shards):
    _, directory = checkpoint
    sep = shards.special_ids["sep"]
    BertModel(BertConfig(**SIZE, vocab_size=shards.vocab_size)).save_pretrained(tmp_path / "bert")
    for fields in ({"size": SIZE}, {"encoder": str(tmp_path / "bert")}, {"checkpoint": str(directory)}):
        assert build_model(ModelSection(**fields), shards, 32).config.pair_separator_id is None
        model = build_model(ModelSection(**fields, pair_types=True), shards, 32)
        assert (
            model.config.pair_separator_id
            == model_config(ModelSection(**fields, pair_types=True), shards, 32).pair_separator_id
            == sep
        )
    model.save_pretrained(tmp_path / "pairs")
    again = {"checkpoint": str(tmp_path / "pairs")}
    assert build_model(ModelSection(**again), shards, 32).config.pair_separator_id == sep
    assert build_model(ModelSection(**again, pair_types=False), shards, 32).config.pair_separator_id is None


@pytest.mark.parametrize("field", [{"latent_size": 5}, {"tie_encoder_decoder": True}, {"extend_positions": True}])
def test_what_a_checkpoint_fixes(checkpoint, shards, field):
    with pytest.raises(
        ConfigError, match=f"model.{next(iter(field))}: model.checkpoint already decides it; remove one"
    ):
        model_config(section(checkpoint[1], **field), shards, 32)


def test_a_checkpoint_that_decodes_padding_needs_another_policy(checkpoint, shards):
    model, directory = checkpoint
    model.config.decoder_length = "padded"
    model.save_pretrained(directory)
    with pytest.raises(
        ConfigError, match=r"its decoder_length is 'padded', which needs padded batches; set model\.dec"
    ):
        model_config(section(directory), shards, 32)
    assert model_config(section(directory, decoder_length="source"), shards, 32).decoder_length == "source"


def test_the_links_of_a_graph_keep_their_shape(tmp_path, shards):
    halves = {half: {**SIZE, "vocab_size": shards.vocab_size} for half in ("encoder", "decoder")}
    tokens = {"bos_token_id": 2, "eos_token_id": 3}
    graph = bnb_model(
        dtype=torch.float32, **halves, **tokens, target="dag", decoder_length_ratio=2.0, link_positions=64
    )
    graph.save_pretrained(tmp_path)
    settings = {"target": "dag", "link_heads": 3, "link_positions": 64}
    kept = build_model(section(tmp_path, **settings), shards, 32)
    assert torch.equal(kept.links.gate.weight, graph.links.gate.weight)
    for changes, made in (
        ({"link_heads": 2}, "link_heads: .* for 3"),
        ({"link_positions": 128}, "link_positions: .* 64"),
    ):
        with pytest.raises(ConfigError, match=rf"model\.{made}; remove model\.link_"):
            model_config(section(tmp_path, **{**settings, **changes}), shards, 32)
    assert model_config(section(tmp_path, target="ctc", link_heads=2), shards, 32).target == "ctc"


def test_wrong_checkpoints(tmp_path, checkpoint, shards):
    with pytest.raises(CheckpointError, match="absent: no such directory; give a model that `bnb-ds export` wrote"):
        build_model(section(tmp_path / "absent"), shards, 32)
    with pytest.raises(CheckpointError, match=r"has no config\.json; give a model that `bnb-ds export`"):
        build_model(section(tmp_path), shards, 32)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(
        CheckpointError, match="run: is the output_dir of a run, not a model; make one with `bnb-ds exp"
    ):
        build_model(section(run), shards, 32)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "marian"}')
    with pytest.raises(CheckpointError, match=r"its config\.json is that of a marian model, not a bnb; give a"):
        build_model(section(tmp_path / "other"), shards, 32)
    directory = checkpoint[1]
    (directory / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="model: cannot be read as a BERT-NAR-BERT model: "):
        build_model(section(directory), shards, 32)


def test_a_checkpoint_of_another_vocabulary(tmp_path, shards):
    bnb_model(dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"model\.encoder: its vocabulary has 53 tokens, the shards"):
        model_config(section(tmp_path), shards, 24)


def test_a_tokenizer_that_pads_with_another_token_is_of_another_vocabulary(tmp_path, shards, small_tokenizer):
    save_checkpoint(tmp_path, "roberta", vocab_size=shards.vocab_size, max_position_embeddings=66)
    message = r"model\.encoder: a roberta that pads with token 1, but the shards pad with 0, so they have different voc"
    with pytest.raises(DataError, match=message):
        model_config(ModelSection(encoder=str(tmp_path)), shards, 32)
    words = TokenizerVocabulary.of(small_tokenizer)
    with pytest.raises(DataError, match=r"pads with token 1, but the tokenizer pads with 0, .*; prepare the data"):
        model_config(ModelSection(encoder=str(tmp_path)), words, 32)


def test_positions_of_a_roberta_are_those_that_tokens_have(tmp_path, shards):
    save_checkpoint(tmp_path, "roberta", vocab_size=shards.vocab_size, max_position_embeddings=65, pad_token_id=0)
    config = model_config(ModelSection(encoder=str(tmp_path)), shards, 64)
    assert (config.decoder.type_vocab_size, config.encoder.type_vocab_size) == (2, 1)
    with pytest.raises(ConfigError, match=r"data\.max_length 65: the encoder has 64 positions; set it to 64"):
        model_config(ModelSection(encoder=str(tmp_path)), shards, 65)


def test_positions_of_bert_checkpoints(tmp_path, shards, small_tokenizer):
    BertModel(BertConfig(vocab_size=shards.vocab_size, **SIZE)).save_pretrained(tmp_path)
    small_tokenizer.save_pretrained(tmp_path)
    longer = ModelSection(encoder=str(tmp_path), max_position_embeddings=100, extend_positions=True)
    model = build_model(longer, shards, 100)
    assert model.model.encoder.embeddings.position_embeddings.weight.shape == (100, 12)
    with pytest.raises(ConfigError, match="max_position_embeddings is 100, but the encoder's checkpoint has 64"):
        build_model(ModelSection(encoder=str(tmp_path), max_position_embeddings=100), shards, 100)


def test_every_setting_of_the_section_reaches_the_model(shards):
    fields = {
        "latent_size": 3,
        "latent_dropout": 0.2,
        "decoder_length": "predicted",
        "decoder_length_min": 2,
        "decoder_length_max": 50,
        "length_difference_min": -4,
        "length_difference_max": 5,
        "length_loss_weight": 0.7,
        "kl_weight": 0.3,
        "tie_encoder_decoder": True,
        "decoder_positions": "absolute",
    }
    config = model_config(ModelSection(size=SIZE, **fields), shards, 32)
    assert {name: getattr(config, name) for name in fields} == fields


def test_random_weights_are_as_wide_as_the_recipe_says(shards):
    wide = build_model(ModelSection(size={**SIZE, "initializer_range": 0.5}, target="dag"), shards, 32)
    usual = build_model(ModelSection(size=SIZE, target="dag"), shards, 32)
    for name in ("links.positions.weight", "model.decoder.embeddings.position_embeddings.weight"):
        assert wide.state_dict()[name].std() == pytest.approx(0.5, rel=0.2)
        assert usual.state_dict()[name].std() == pytest.approx(0.02, rel=0.2)
    with pytest.raises(ValueError, match="greater than 0"):
        ModelSection(size={**SIZE, "initializer_range": 0.0})


def test_embeddings_may_be_wider_than_other_weights(shards, tmp_path):
    section = ModelSection(size=SIZE, target="dag", embedding_range=1.0)
    model = build_model(section, shards, 32)
    for name, weight in model.state_dict().items():
        if name.endswith(("embeddings.weight", "positions.weight")):
            if "encoder." in name or "type" in name:
                continue
            assert weight.std() == pytest.approx(1.0, rel=0.5), name
        elif name.endswith("dense.weight"):
            assert weight.std() == pytest.approx(0.02, rel=0.3), name
    model.save_pretrained(tmp_path)
    again = BnbForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.embedding_range == 1.0
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
    with pytest.raises(ConfigError, match=r"embedding_range is -1\.0: give a number above 0, or leave it out"):
        BnbConfig(embedding_range=-1.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"decoder_length_ratio": 2.1},
            r"model\.decoder_length_ratio 2\.1: with model\.decoder_positions shared a source token has two different "
            r"slots at most, and all others equal them; set it to 2, or decoder_positions to absolute",
        ),
        (
            {"decoder_length_offset": 1},
            r"model\.decoder_length_offset 1: with .* equal them; set it to 0, or decoder_pos",
        ),
    ],
)
def test_new_models_do_not_begin_with_equal_slots(shards, checkpoint, fields, message):
    def refused(chosen):
        return refuse_equal_slots(chosen, model_config(chosen, shards, 16))

    with pytest.raises(ConfigError, match=message):
        refused(ModelSection(size=SIZE, **fields))
    with pytest.raises(ConfigError, match=message):
        refused(ModelSection(size=SIZE, target="dag", **fields))
    for fine in (
        {"decoder_positions": "absolute"},
        {"decoder_length": "predicted"},
        {"decoder_length_ratio": 1.5},
    ):
        refused(ModelSection(size=SIZE, **{**fields, **fine}))
    model, directory = checkpoint
    model.config.update({"decoder_length_ratio": 2.0, **fields})
    model.save_pretrained(directory)
    refused(section(directory, kl_weight=0.1))  # its own settings
    with pytest.raises(ConfigError, match=message):
        refused(section(directory, **fields))


def test_a_source_longer_than_the_decoder_needs_slots_of_their_own_positions(tmp_path, shards):
    """An encoder of long sources in front of a decoder of few positions."""
    sizes = {half: {**SIZE, "vocab_size": shards.vocab_size} for half in ("encoder", "decoder")}
    sizes["encoder"]["max_position_embeddings"] = 900
    bnb_model(dtype=torch.float32, **sizes, decoder_length_ratio=0.5).save_pretrained(tmp_path)

    def config(**fields):
        return model_config(section(tmp_path, **fields), shards, 500)

    message = (
        "model.decoder_positions shared: 500 source tokens need as many decoder positions, and the decoder has 64;"
    )
    with pytest.raises(ConfigError, match=f"{message} set it to absolute with a decoder_length_max of at most 64, or"):
        config()
    with pytest.raises(ConfigError, match=r"decoder has 64; set model\.decoder_length_max to at most 64, or lower"):
        config(decoder_positions="absolute")
    assert config(decoder_positions="absolute", decoder_length_max=64).encoder.max_position_embeddings == 900
