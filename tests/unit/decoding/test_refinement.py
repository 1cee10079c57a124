"""Further passes of the decoder, which see tokens of the passes before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bnb_ds.decoding.decode import generate_rows
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.decoding.refinement import LOG_PROB_STEP, num_masked
from bnb_ds.errors import ConfigError
from bnb_ds.generate.engines import CompiledEngine
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.targets.glancing import lowest_of_each
from tests.plain_beam import torch_score
from tests.tiny import bnb_model, layout_of, padded_form, source_ids

VECTORS = Path(__file__).resolve().parents[3].parent / "shared" / "nar" / "vectors.json"
MODELS = Path(__file__).parents[2] / "golden" / "first_models"
TOKENS = {"decoder_tokens": True, "mask_token_id": 4}
KINDS = {
    "ctc": {},
    "ctc, predicted": {"decoder_length": "predicted", "target": "ctc"},
    "ctc, padded": {"decoder_length": "padded"},
    "token": {"decoder_length": "predicted"},
    "token, deep": {"decoder_length": "predicted", "deep_supervision": True},
}
SOURCES = source_ids([7, 1, 10, 3, 3, 9, 2])


def test_schedule_and_choice_of_the_vectors():
    if not VECTORS.is_file():
        pytest.skip(f"no vectors at {VECTORS}")
    vectors = json.loads(VECTORS.read_text())["mask_predict"]
    for case in vectors["schedule"]:
        length, passes = torch.tensor([case["length"]]), case["iterations"]
        masked = [num_masked(length, number, passes).item() for number in range(passes)]
        assert masked == case["masked"]
    probabilities = torch.tensor(vectors["select"]["probabilities"]).log()
    for number, chosen in vectors["select"]["masked"].items():
        everywhere = torch.ones(6, dtype=torch.bool)
        found = lowest_of_each(everywhere, torch.tensor([int(number)]), probabilities, layout_of([6]))
        assert found.nonzero().flatten().tolist() == chosen


def states_of(model, source, token_ids=None, length=None):
    """Log-probabilities [T, V] of one source's slots, whose input holds these tokens."""
    with torch.no_grad():
        encoded = model.model.encode(model.model.pack(source[None]))
        slots = model.model.open(encoded, None if length is None else torch.tensor([length]))
        if token_ids is not None:
            slots = replace(slots, token_ids=torch.tensor(token_ids))
        states = model.states(encoded, slots)
        return (states.hidden @ states.weight.T + states.bias).log_softmax(1)


@pytest.mark.parametrize("refinement", [1, 2, 4])
def test_the_least_probable_tokens_are_predicted_anew(refinement):
    model = bnb_model(decoder_length="predicted", **TOKENS)
    changed = 0
    for source in SOURCES:
        values, tokens = states_of(model, source).max(1)
        values, tokens, length = values.tolist(), tokens.tolist(), len(tokens)
        first = list(tokens)
        for number in range(1, refinement + 1):
            count = length * (refinement + 1 - number) // (refinement + 1)
            masked = sorted(range(length), key=lambda slot: (round(values[slot] / LOG_PROB_STEP), slot))[:count]
            shown = [4 if slot in masked else token for slot, token in enumerate(tokens)]
            log_probs = states_of(model, source, shown)
            for slot in masked:
                values[slot], tokens[slot] = log_probs[slot].max().item(), log_probs[slot].argmax().item()
        output = model.generate(source[None], refinement=refinement, return_scores=True)
        assert output.sequences[0].tolist() == tokens
        assert output.scores.item() == pytest.approx(sum(values), rel=1e-9)
        changed += tokens != first
    assert changed


@pytest.mark.parametrize("refinement", [1, 3])
def test_each_pass_of_ctc_sees_the_surer_tokens_of_the_pass_before(refinement):
    model = bnb_model(**TOKENS)
    changed = 0
    for source in SOURCES:
        log_probs = states_of(model, source)
        first = log_probs.argmax(1).tolist()
        for number in range(1, refinement + 1):
            values, tokens = (part.tolist() for part in log_probs.max(1))
            written = [slot for slot, token in enumerate(tokens) if token]
            written.sort(key=lambda slot: round(values[slot] / LOG_PROB_STEP))
            masked = written[: len(written) * (refinement + 1 - number) // (refinement + 1)]
            shown = [4 if slot in masked else token or 4 for slot, token in enumerate(tokens)]
            log_probs = states_of(model, source, shown)
        path = log_probs.argmax(1).tolist()
        merged = [token for place, token in enumerate(path) if place == 0 or token != path[place - 1]]
        output = model.generate(source[None], refinement=refinement, return_scores=True)
        assert output.sequences[0, : output.lengths.item()].tolist() == [token for token in merged if token]
        written = output.sequences[0, : output.lengths.item()].tolist()
        assert output.scores.item() == pytest.approx(torch_score(log_probs, written, 0), rel=1e-9)
        changed += path != first
    assert changed


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_outputs_do_not_depend_on_the_batch(kind):
    model = bnb_model(**kind, **TOKENS)
    rows = [source.tolist() for source in SOURCES]
    options = DecodeOptions(refinement=2, token_budget=10_000)
    together = generate_rows(model, rows, options, with_scores=True)
    for budget in (1, 50):
        for whole, part in zip(
            together, generate_rows(model, rows, replace(options, token_budget=budget), with_scores=True), strict=True
        ):
            assert whole[0] == part[0]
            assert whole[1] == pytest.approx(part[1], rel=1e-9)
    if kind.get("decoder_length") != "padded":
        for row, (tokens, _) in zip(SOURCES, together, strict=True):
            alone = model.generate(row[None], refinement=2, return_scores=True)
            assert alone.sequences[0, : alone.lengths.item()].tolist() == tokens


def test_equal_slots_are_taken_in_their_order():
    """All slots of a source of one token but the first are equal; their last bits must not choose among them."""
    model = bnb_model(decoder_length_min=9, **TOKENS)
    rows = [source.tolist() for source in source_ids([1] * 8)]
    options = DecodeOptions(refinement=3, token_budget=10_000)
    together = generate_rows(model, rows, options)
    assert [generate_rows(model, [row], options)[0] for row in rows] == together


@pytest.mark.parametrize("name", ["ctc", "token"])
def test_no_refinement_is_the_output_of_before(name):
    """The gate of a model that never saw tokens is closed, so that further passes change nothing either."""
    directory = MODELS / name
    expected = json.loads((directory / "outputs.json").read_text())
    ids = torch.tensor(expected["input_ids"])
    mask = (ids != 0).long()
    read = BnbForConditionalGeneration.from_pretrained
    plain, open_to_tokens = (read(directory, dtype=torch.float64, **fields).eval() for fields in ({}, TOKENS))
    before = plain.generate(ids, mask, return_scores=True)
    assert before.sequences.tolist() == expected["sequences"]
    for refinement in (0, 2):
        after = open_to_tokens.generate(ids, mask, return_scores=True, refinement=refinement)
        assert torch.equal(after.sequences, before.sequences)
        if refinement == 0:
            assert torch.equal(after.scores, before.scores)


def test_the_other_options_hold_with_refinement():
    inputs = padded_form(SOURCES)
    ctc = bnb_model(**TOKENS)
    greedy = ctc.generate(**inputs, refinement=1, return_scores=True)
    beam = ctc.generate(**inputs, refinement=1, return_scores=True, beam_size=6)
    assert (beam.scores >= greedy.scores - 1e-9).all()
    limited = ctc.generate(**inputs, refinement=1, max_length=3, return_scores=True)
    assert limited.lengths.max() <= 3
    token = bnb_model(decoder_length="predicted", **TOKENS)
    several = token.generate(**inputs, refinement=2, length_beam=3, return_scores=True)
    one = token.generate(**inputs, refinement=2, return_scores=True)
    means = [output.scores / output.lengths for output in (several, one)]
    assert (means[0] >= means[1] - 1e-12).all()
    assert (means[0] > means[1] + 1e-12).any()
    for model in (ctc, token):
        written = sorted(set(model.generate(**inputs, refinement=2).flatten().tolist()) - {0})[:3]
        without = model.generate(**inputs, refinement=2, bad_words_ids=[[word] for word in written])
        assert not set(without.flatten().tolist()) & set(written)


def test_a_compiled_model_has_one_pass():
    engine = CompiledEngine(bnb_model(dtype=torch.float32, **TOKENS))
    engine.check(DecodeOptions(refinement=0), with_scores=False)
    with pytest.raises(ConfigError, match=r"a compiled model only decodes greedily, .*, in one pass: leave those"):
        engine.check(DecodeOptions(refinement=1), with_scores=False)


@pytest.mark.parametrize(
    ("fields", "refinement", "message"),
    [
        (TOKENS, -1, "refinement is -1: give a whole number of at least 0"),
        (TOKENS, True, "refinement is True: give a whole number of at least 0"),
        ({}, 1, "refinement is 1: .* this model was made without decoder_tokens; leave it out, or fine-tune"),
        ({"target": "dag", **TOKENS}, 2, "refinement is 2: a graph of slots is decoded in one pass; leave it out"),
    ],
)
def test_refused(fields, refinement, message):
    with pytest.raises(ConfigError, match=message):
        bnb_model(**fields).generate(SOURCES[0][None], refinement=refinement)
