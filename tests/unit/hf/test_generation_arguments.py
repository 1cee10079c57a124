"""The arguments of transformers' ``generate``."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from bnb_ds.decoding.decode import GenerateOutput
from bnb_ds.errors import ConfigError
from tests.tiny import bnb_model, pad_rows, source_ids

IDS = pad_rows(source_ids([7, 5, 9]))
CTC = {"decoder_length_ratio": 1.0}
LENGTHS = {"decoder_length": "predicted", "length_difference_min": -3, "length_difference_max": 3}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"max_new_tokens": 3}, {"max_length": 3}),
        ({"min_new_tokens": 4}, {"min_length": 4}),
        ({"num_beams": 4}, {"beam_size": 4}),
        (
            {"num_beams": 3, "max_new_tokens": 4, "no_repeat_ngram_size": 2},
            {"beam_size": 3, "max_length": 4, "no_repeat_ngram_size": 2},
        ),
        ({"generation_config": GenerationConfig(num_beams=4, max_new_tokens=4)}, {"beam_size": 4, "max_length": 4}),
        (
            {"generation_config": GenerationConfig(num_beams=4, max_length=2), "max_new_tokens": 4},
            {"beam_size": 4, "max_length": 4},
        ),
        (
            {"generation_config": GenerationConfig(max_length=20, do_sample=False, temperature=0.5, top_k=4)},
            {"max_length": 20},
        ),
    ],
    ids=str,
)
def test_their_names_say_what_ours_say(theirs, ours):
    model = bnb_model(**CTC)
    assert torch.equal(model.generate(IDS, **theirs), model.generate(IDS, **ours))


def test_a_beam_of_a_model_that_predicts_lengths_is_one_of_lengths():
    model = bnb_model(**LENGTHS)
    found = model.generate(IDS, num_beams=4, return_scores=True)
    assert torch.equal(found.sequences, model.generate(IDS, length_beam=4))


def test_the_form_of_the_output():
    model = bnb_model(**CTC)
    plain = model.generate(IDS)
    for options in (
        {"return_dict_in_generate": True},
        {"generation_config": GenerationConfig(return_dict_in_generate=True, output_scores=True)},
    ):
        found = model.generate(IDS, **options)
        assert isinstance(found, GenerateOutput)
        assert torch.equal(found.sequences, plain)
        assert torch.equal(found.scores, model.generate(IDS, return_scores=True).scores)
    assert torch.equal(model.generate(inputs=IDS, return_dict_in_generate=False), plain)


def test_what_changes_nothing_is_passed_over():
    model = bnb_model(**CTC)
    options = {"use_cache": True, "pad_token_id": 0, "eos_token_id": 3, "early_stopping": True, "synced_gpus": False}
    nothing = {"num_beams": 1, "do_sample": False, "temperature": 1.0, "top_k": 50, "num_return_sequences": 1}
    unset = dict.fromkeys(("max_length", "bad_words_ids", "no_repeat_ngram_size", "logits_processor", "streamer"))
    found = model.generate(IDS, **options, **nothing, **unset, labels=IDS)
    assert torch.equal(found, model.generate(IDS))


def test_the_models_own_configuration_counts_but_for_transformers_defaults():
    model = bnb_model(decoder_length_ratio=2.0)
    plain = model.generate(pad_rows(source_ids([22])))
    assert plain.shape[1] > 20
    # what Seq2SeqTrainer does after its first batch
    model.generation_config.update(**GenerationConfig._get_default_generation_params(), defaults_only=True)
    assert torch.equal(model.generate(pad_rows(source_ids([22]))), plain)
    model.generation_config.max_new_tokens = 3
    assert model.generate(IDS).shape[1] <= 3
    assert model.generate(IDS, max_length=5).shape[1] > 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"do_sample": True}, "do_sample is True: generate does not sample: .* search with num_beams"),
        ({"generation_config": GenerationConfig(do_sample=True)}, "do_sample is True"),
        ({"temperature": 0.7}, "temperature is 0.7: generate does not sample"),
        ({"top_p": 0.9}, "top_p is 0.9: generate does not sample"),
        (
            {"num_return_sequences": 2},
            "generate was given num_return_sequences: each source has one output; leave it out",
        ),
        (
            {"stop_strings": ["a"]},
            "generate was given stop_strings: a decoder that writes all tokens at once has no such",
        ),
        ({"repetition_penalty": 1.5}, "generate was given repetition_penalty: a decoder that writes"),
        (
            {"max_length": 3, "max_new_tokens": 3},
            "max_length and max_new_tokens: they say the same, so give one of them",
        ),
        ({"beam_size": 3, "num_beams": 3}, "beam_size and num_beams: they say the same"),
        ({"num_beans": 3}, "generate has no setting 'num_beans'"),
    ],
    ids=str,
)
def test_what_a_parallel_decoder_has_not_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        bnb_model(**CTC).generate(IDS, **options)


def test_without_sources():
    with pytest.raises(ConfigError, match="generate was given no input_ids: give the token ids of the sources"):
        bnb_model().generate(max_new_tokens=3)


def test_with_weights_in_parts():
    model = bnb_model()
    model.get_output_embeddings().weight.data = torch.empty(0)  # as ZeRO 3 leaves them
    with pytest.raises(ConfigError, match=r"ranks hold parts of them \(ZeRO 3\): train with ZeRO 1 or 2"):
        model.generate(IDS)
