"""How the non-autoregressive baselines decode, against plain loops over one source."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bnb_ds.decoding.decode import decode_batch, generate_rows
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.errors import ConfigError
from tests.tiny import bnb_model, packed_form, source_ids

NAR = {
    "decoder_length": "predicted",
    "decoder_positions": "absolute",
    "decoder_tokens": True,
    "mask_token_id": 4,
    "decoder_latent": False,
}
KINDS = {
    "nat": {**NAR, "slot_tokens": "source"},
    "inat": {**NAR, "slot_tokens": "source", "refined_tokens": "all", "decoding": {"refinement": 9}},
    "cmlm": {**NAR, "decoding": {"refinement": 3, "length_beam": 3}},
    "elmer": {**NAR, "deep_supervision": True, "decoding": {"exit_entropy": 3.6}},
}
SOURCES = source_ids([7, 1, 10, 3, 3, 9, 2])


def model_of(kind, **more):
    model = bnb_model(**{**KINDS[kind], **more})
    for feedback in model.model.decoder.feedback or ():
        torch.nn.init.normal_(feedback.weight, std=0.4)
    return model


def opened(model, source, length=None):
    encoded = model.model.encode(model.model.pack(source[None]))
    return encoded, model.model.open(encoded, None if length is None else torch.tensor([length]))


def log_probs_of(model, encoded, slots):
    states = model.states(encoded, slots)
    return (states.hidden @ states.weight.T + states.bias).log_softmax(1)


@pytest.mark.parametrize("kind", ["nat", "inat"])
def test_slots_hold_a_uniform_copy_of_the_source(kind):
    model = model_of(kind)
    for source in SOURCES:
        for length in (1, 2, 5, 13):
            _, slots = opened(model, source, length)
            assert slots.token_ids.tolist() == [source[j * len(source) // length].item() for j in range(length)]


@torch.no_grad()
@pytest.mark.parametrize("refinement", [0, 1, 4, 9])
def test_whole_outputs_are_written_anew_until_nothing_changes(refinement):
    model = model_of("inat")
    passes = []
    for source in SOURCES:
        encoded, slots = opened(model, source)
        values, tokens = log_probs_of(model, encoded, slots).max(1)
        for number in range(refinement):  # noqa: B007
            held = replace(slots, token_ids=tokens)
            values, again = log_probs_of(model, encoded, held).max(1)
            if torch.equal(again, tokens):
                break
            tokens = again
        else:
            number = refinement
        passes.append(number)
        output = model.generate(source[None], refinement=refinement, return_scores=True)
        assert output.sequences[0].tolist() == tokens.tolist()
        assert output.scores.item() == pytest.approx(values.sum().item(), rel=1e-9)
        if refinement == 9:
            assert model.generate(source[None]).tolist() == output.sequences.tolist(), "nine are the model's default"
    if refinement == 9:
        assert len(set(passes)) > 2, "sources differ in the number of passes that they need"


@torch.no_grad()
def test_slots_that_are_sure_keep_their_state():
    model = model_of("elmer")
    decoder = model.model.decoder
    exits = []
    for source in SOURCES:
        encoded, slots = opened(model, source)
        hidden = decoder.embeddings(encoded.latent, slots)
        kept = [None] * slots.layout.num_tokens
        for number, layer in enumerate(decoder.layer):
            arguments = {"layout": slots.layout, "memory_layout": encoded.layout}
            hidden = layer(hidden[None], None, encoded.hidden[None], **arguments)[0].clone()
            for slot, state in enumerate(kept):
                if state is not None:
                    hidden[slot] = state
            logits = model.lm_head(hidden) @ model.get_output_embeddings().weight.T + model.lm_head.bias
            if number + 1 == len(decoder.layer):
                break
            for slot, entropy in enumerate(torch.distributions.Categorical(logits=logits).entropy().tolist()):
                if entropy < 3.6 and kept[slot] is None:
                    kept[slot] = hidden[slot].clone()
            words = decoder.embeddings.word_embeddings(logits.argmax(1))
            hidden = decoder.feedback[number](hidden, words)
        exits += [state is not None for state in kept]
        output = model.generate(source[None], return_scores=True)
        assert output.sequences[0].tolist() == logits.argmax(1).tolist()
        assert output.scores.item() == pytest.approx(logits.log_softmax(1).max(1).values.sum().item(), rel=1e-9)
    assert any(exits), "some slots exit"
    assert not all(exits), "others do not"


@torch.no_grad()
def test_no_slot_or_every_slot_exits():
    model = model_of("elmer")
    for source in SOURCES:
        plain = model_of("elmer", decoding={}).generate(source[None], return_scores=True)
        none, every = (model.generate(source[None], return_scores=True, exit_entropy=x) for x in (0.0, 99.0))
        assert torch.equal(none.scores, plain.scores)
        encoded, slots = opened(model, source)
        arguments = {"layout": slots.layout, "memory_layout": encoded.layout}
        hidden = model.model.decoder.embeddings(encoded.latent, slots)
        hidden = model.model.decoder.layer[0](hidden[None], None, encoded.hidden[None], **arguments)[0]
        logits = model.lm_head(hidden) @ model.get_output_embeddings().weight.T + model.lm_head.bias
        assert every.sequences[0].tolist() == logits.argmax(1).tolist(), "all exit behind the first layer"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ends_early", [True, False])
def test_outputs_do_not_depend_on_the_batch(kind, ends_early):
    model = model_of(kind)
    rows = [source.tolist() for source in SOURCES]
    options = replace(DecodeOptions.of_model(model.config), token_budget=10_000, ends_early=ends_early)
    together = generate_rows(model, rows, options, with_scores=True)
    for source, (tokens, score) in zip(SOURCES, together, strict=True):
        alone = model.generate(source[None], return_scores=True)
        assert alone.sequences[0, : alone.lengths.item()].tolist() == tokens
        assert alone.scores.item() == pytest.approx(score, rel=1e-9)


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_true_lengths_are_used_where_they_are_given(kind):
    model = model_of(kind)
    wanted = torch.tensor([4, 9, 1, 2, 13, 5, 6])
    inputs = model.model.pack(**packed_form(SOURCES))
    options = DecodeOptions.of_model(model.config)
    decoded = model(**packed_form(SOURCES), decode=lambda *given: decode_batch(*given, options)).decoded
    assert decoded.lengths.tolist() != wanted.tolist()
    decoded = decode_batch(model, inputs, options, target_lengths_B=wanted)
    assert decoded.lengths.tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({}, {"exit_entropy": 1.0}, "exit_entropy is 1.0: only models with deep_supervision predict behind every"),
        ({"deep_supervision": True}, {"exit_entropy": -1}, "exit_entropy is -1: give a number of nats of at least 0"),
        ({"deep_supervision": True}, {"exit_entropy": True}, "exit_entropy is True: give a number of nats"),
        ({"slot_tokens": "source"}, {}, "slot_tokens 'source' shows tokens to the decoder: set decoder_tokens to true"),
        ({"slot_tokens": "blank"}, {}, "slot_tokens is 'blank': use one of: mask, source"),
        ({"decoder_latent": False}, {}, "decoder_latent is false, and with decoder_length 'source' nothing else reads"),
        ({"refined_tokens": "all"}, {}, "refined_tokens 'all' needs target 'token', not 'ctc': use 'unsure'"),
        (
            {"decoding": {"beams": 3}},
            {},
            "decoding: a field is 'beams': use one of: length_beam, refinement",
        ),
        (
            {**NAR, "slot_tokens": "source", "decoder": {"vocab_size": 31}},
            {},
            "slot_tokens 'source' needs one vocabulary, but the encoder has 53 tokens and the decoder 31: use 'mask'",
        ),
    ],
)
def test_refused(fields, options, message):
    with pytest.raises(ConfigError, match=message):
        bnb_model(**fields).generate(SOURCES[0][None], **options)
