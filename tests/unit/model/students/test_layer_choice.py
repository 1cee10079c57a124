"""Shallow halves: which layers of a checkpoint they take, and models whose halves differ in depth."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, BertForMaskedLM

from bnb_ds.baselines.from_bart import halves_of_bart, load_bart
from bnb_ds.config.model_section import ModelSection
from bnb_ds.errors import ConfigError
from bnb_ds.model.classification import BnbForSequenceClassification
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.flops import forward_flops
from bnb_ds.model.students.layer_choice import cut_halves, depth_line, shallow_model, taken_layers, taught_layers
from bnb_ds.model_factory import build_model, model_config
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.shards.reader import TokenShards
from tests.tiny import bert_config, bnb_model, packed_form, padded_form, source_ids

DEPTH = 5
SIZE = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20, "max_position_embeddings": 64}
INPUTS = padded_form(source_ids([7, 1, 10]))


@pytest.fixture(scope="module")
def shards(small_shards):
    return TokenShards(small_shards, "train")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    model = BertForMaskedLM(bert_config(num_hidden_layers=DEPTH)).eval()
    model.save_pretrained(directory)
    return model, directory


def layers_of(half, bert_layers) -> list[int]:
    """Which layers of a BERT the layers of a half are."""
    own = [layer.attention.self.query.weight for layer in half.layer]
    theirs = [layer.attention.self.query.weight for layer in bert_layers]
    return [next(n for n, their in enumerate(theirs) if torch.equal(weight, their)) for weight in own]


def test_layers_are_evenly_spaced_from_the_first_to_the_last():
    assert taken_layers(6, 12) == [0, 2, 4, 7, 9, 11]  # as in the paper
    assert taken_layers(3, 12) == [0, 6, 11]
    assert taken_layers(1, 12) == [0]
    for available in range(1, 14):
        for number in range(1, available + 1):
            layers = taken_layers(number, available)
            assert len(set(layers)) == number
            assert layers[0] == 0
            assert number == 1 or layers[-1] == available - 1
            gaps = {after - before for before, after in itertools.pairwise(layers)}
            assert max(gaps, default=1) - min(gaps, default=1) <= 1


def test_a_student_s_last_layer_learns_from_the_last():
    assert taught_layers(6, 12) == [1, 3, 5, 7, 9, 11]
    assert taught_layers(1, 12) == [11]
    assert taught_layers(4, 6) == [1, 2, 4, 5]
    assert taught_layers(3, 3) == [0, 1, 2]


def test_from_bert_takes_some_layers_of_each_half(bert):
    model = BnbForConditionalGeneration.from_bert(bert[1], encoder_layers=3, decoder_layers=2, latent_size=3)
    layers = bert[0].bert.encoder.layer
    assert layers_of(model.model.encoder, layers) == [0, 2, 4]
    assert layers_of(model.model.decoder, layers) == [0, 4]
    assert model.config.taken_layers == {"encoder": [0, 2, 4], "decoder": [0, 4]}
    assert depth_line(model.config) == (
        "layers       encoder 3 (from layers 0 2 4 of the checkpoint), decoder 2 (from layers 0 4 of the checkpoint)"
    )


@pytest.mark.parametrize("number", [0, 6])
def test_no_more_layers_than_there_are(bert, number):
    with pytest.raises(ConfigError, match=f"decoder_layers is {number}, but the checkpoint has 5 layers: give fewer"):
        BnbForConditionalGeneration.from_bert(bert[1], decoder_layers=number)


def test_shared_halves_have_one_depth(bert, shards):
    message = "tie_encoder_decoder needs two halves of the same size, but these differ: num_hidden_layers: make them"
    with pytest.raises(ConfigError, match=message):
        BnbForConditionalGeneration.from_bert(bert[1], decoder_layers=2, tie_encoder_decoder=True)
    with pytest.raises(ConfigError, match=message):
        model_config(ModelSection(size=SIZE, decoder_layers=2, tie_encoder_decoder=True), shards, 32)
    both = BnbForConditionalGeneration.from_bert(bert[1], encoder_layers=2, decoder_layers=2, tie_encoder_decoder=True)
    assert layers_of(both.model.decoder, bert[0].bert.encoder.layer) == [0, 4]


def test_random_weights_of_unequal_depths(shards):
    section = ModelSection(size={**SIZE, "num_hidden_layers": 6}, decoder_layers=1)
    model = build_model(section, shards, 32)
    assert (len(model.model.encoder.layer), len(model.model.decoder.layer)) == (6, 1)
    assert model.config.taken_layers is None
    assert depth_line(model.config) == "layers       encoder 6, decoder 1"
    assert depth_line(model_config(ModelSection(size=SIZE), shards, 32)) is None


def test_a_checkpoint_is_cut_and_says_so(tmp_path, shards):
    section = ModelSection(size={**SIZE, "num_hidden_layers": 4}, deep_supervision=True)
    whole = build_model(section, shards, 32)
    with torch.no_grad():
        for number, feedback in enumerate(whole.model.decoder.feedback):
            feedback.weight.fill_(number)
    whole.save_pretrained(tmp_path)
    cut = build_model(ModelSection(checkpoint=str(tmp_path), encoder_layers=2, decoder_layers=3), shards, 32)
    assert layers_of(cut.model.encoder, whole.model.encoder.layer) == [0, 3]
    assert layers_of(cut.model.decoder, whole.model.decoder.layer) == [0, 2, 3]
    assert [feedback.weight.mean().item() for feedback in cut.model.decoder.feedback] == [0.0, 2.0]
    assert torch.equal(cut.lm_head.transform.dense.weight, whole.lm_head.transform.dense.weight)
    cut.save_pretrained(tmp_path / "cut")
    again = BnbForConditionalGeneration.from_pretrained(tmp_path / "cut")
    assert again.config.taken_layers == {"encoder": [0, 3], "decoder": [0, 2, 3]}
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in cut.state_dict().items())
    same = build_model(ModelSection(checkpoint=str(tmp_path / "cut"), decoder_layers=3), shards, 32)
    assert same.config.taken_layers == again.config.taken_layers  # nothing is cut, so the record stays


def test_a_layer_that_becomes_the_last_has_no_feedback():
    whole = bnb_model(encoder={"num_hidden_layers": 2}, decoder={"num_hidden_layers": 5}, deep_supervision=True)
    config = BnbConfig.from_dict(whole.config.to_dict())
    cut_halves(config, None, 1)
    cut = shallow_model(whole, config)
    assert len(cut.model.decoder.feedback) == 0
    assert cut.double()(**INPUTS).logits.isfinite().all()


def test_halves_of_a_bart(tmp_path):
    sizes = {f"{half}_attention_heads": 3 for half in ("encoder", "decoder")}
    config = BartConfig(
        vocab_size=53,
        d_model=12,
        encoder_layers=3,
        decoder_layers=4,
        max_position_embeddings=24,
        **sizes,
        encoder_ffn_dim=20,
    )
    torch.manual_seed(0)
    bart = BartForConditionalGeneration(config)
    bart.save_pretrained(tmp_path)
    cut = BnbConfig(**halves_of_bart(str(tmp_path)), decoder_positions="absolute", head_transform=False)
    cut_halves(cut, None, 2)
    model = BnbForConditionalGeneration(cut)
    load_bart(model, str(tmp_path))
    own = [layer.crossattention.self.query.weight for layer in model.model.decoder.layer]
    theirs = [bart.model.decoder.layers[n].encoder_attn.q_proj.weight for n in (0, 3)]
    assert all(map(torch.equal, own, theirs))


def test_a_classifier_takes_some_layers(bert):
    config = BnbConfig(encoder=bert_config(num_hidden_layers=DEPTH), num_labels=2)
    cut_halves(config, 3, None)
    model = BnbForSequenceClassification(config)
    model.load_bert(bert[1])
    assert layers_of(model.model.encoder, bert[0].bert.encoder.layer) == [0, 2, 4]


@pytest.mark.parametrize("depths", [(4, 1), (1, 4)])
def test_padded_equals_packed_and_flops_count_each_half(depths):
    model = bnb_model(encoder={"num_hidden_layers": depths[0]}, decoder={"num_hidden_layers": depths[1]})
    sources = source_ids([7, 2, 10])
    padded, packed = model(**padded_form(sources)), model(**packed_form(sources))
    rows = [row[:length] for row, length in zip(padded.logits, padded.decoder_lengths.tolist(), strict=True)]
    torch.testing.assert_close(torch.cat(rows), packed.logits)
    even = bnb_model(encoder={"num_hidden_layers": depths[0]}, decoder={"num_hidden_layers": depths[0]})
    lengths, slots = [7, 2, 10], packed.decoder_lengths.numpy()
    more = forward_flops(model.config, lengths, slots) - forward_flops(even.config, lengths, slots)
    assert (more > 0) == (depths[1] > depths[0])
