"""Decoding options: batches, order, scores, limits and refused settings."""

from __future__ import annotations

import pytest
import torch

from bnb_ds.decoding.batching import plan_batches
from bnb_ds.decoding.decode import decode_batch, generate_rows
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.errors import ConfigError
from bnb_ds.model.slots import decoder_lengths
from tests.plain_beam import torch_score
from tests.tiny import bnb_config, bnb_model, padded_form, source_ids

LENGTHS = [7, 1, 10, 3, 3, 9, 2]
POLICIES = ["source", "padded", "predicted"]


def rows_of(ids: torch.Tensor) -> list[list[int]]:
    return [[token for token in row if token] for row in ids.tolist()]


@pytest.fixture(params=POLICIES)
def model(request):
    return bnb_model(decoder_length=request.param)


@pytest.mark.parametrize("budget", [1, 13, 40, 10_000])
def test_the_token_budget_changes_nothing(model, budget):
    inputs = padded_form(source_ids(LENGTHS))
    whole = model.generate(**inputs, token_budget=10_000)
    assert torch.equal(model.generate(**inputs, token_budget=budget), whole)


def test_padding_and_neighbours_change_nothing():
    model = bnb_model()
    sources = source_ids(LENGTHS)
    together = rows_of(model.generate(**padded_form(sources)))
    assert [rows_of(model.generate(source[None]))[0] for source in sources] == together
    inputs = {name: torch.nn.functional.pad(tensor, (3, 4)) for name, tensor in padded_form(sources).items()}
    assert rows_of(model.generate(**inputs)) == together


@pytest.mark.parametrize("budget", [1, 30, 10_000])
def test_lists_give_what_tensors_give(model, budget):
    sources = source_ids(LENGTHS)
    inputs = padded_form(sources)
    if model.config.decoder_length == "padded":  # all lists are padded to the model's positions
        width = model.config.encoder.max_position_embeddings
        inputs = {name: torch.nn.functional.pad(x, (0, width - x.shape[1])) for name, x in inputs.items()}
    found = generate_rows(model, [source.tolist() for source in sources], DecodeOptions(token_budget=budget))
    expected = model.generate(**inputs, return_scores=True)
    for (tokens, score), row, end in zip(found, expected.sequences.tolist(), expected.lengths, strict=True):
        assert tokens == row[:end]
        assert score is None


def test_batches_hold_like_lengths_within_the_budget():
    config = bnb_config()
    lengths = [5, 24, 1, 17, 17, 3, 24, 8]
    batches = plan_batches(lengths, config, 100)
    assert sorted(index for batch in batches for index in batch) == list(range(8))
    flat = [lengths[index] for batch in batches for index in batch]
    assert flat == sorted(lengths, reverse=True)
    costs = torch.tensor(lengths) + decoder_lengths(torch.tensor(lengths), config)
    assert all(len(batch) == 1 or len(batch) * max(costs[batch]) <= 100 for batch in batches)
    assert 1 < len(batches) < 8
    assert plan_batches([], config, 100) == []
    widths = [len(plan_batches(lengths, config, 200, number)) for number in (1, 4, 32)]
    assert widths == sorted(set(widths))


def test_batches_of_a_beam_are_sized_by_its_slots(monkeypatch):
    sizes = []
    model = bnb_model()
    monkeypatch.setattr(
        "bnb_ds.decoding.decode.decode_batch",
        lambda model, inputs, *others, **more: (
            sizes.append(inputs.layout.batch_size) or decode_batch(model, inputs, *others, **more)
        ),
    )
    rows, slots = [[4, 5, 6, 7]] * 12, int(decoder_lengths(torch.tensor([4]), model.config))
    generate_rows(model, rows, DecodeOptions(token_budget=3 * (4 + 8 * slots), beam_size=8))
    model.generate(torch.tensor(rows), token_budget=3 * (4 + 8 * slots), beam_size=8)
    assert sizes == [3] * 8
    assert [DecodeOptions(**options).num_hypotheses for options in ({}, {"length_beam": 3}, {"strategy": "beam"})] == [
        1,
        3,
        20,
    ]


def test_scores_of_ctc_are_exact():
    model = bnb_model()
    sources = source_ids(LENGTHS)
    output = model.generate(**padded_form(sources), return_scores=True)
    for source, row, end, score in zip(sources, output.sequences, output.lengths, output.scores, strict=True):
        with torch.no_grad():
            log_probs = model(source[None]).logits[0].log_softmax(-1)
        assert score.item() == pytest.approx(torch_score(log_probs, row[:end].tolist(), 0), rel=1e-9)


def test_scores_of_length_classification_are_sums_of_the_tokens():
    model = bnb_model(decoder_length="predicted")
    sources = source_ids(LENGTHS)
    output = model.generate(**padded_form(sources), return_scores=True)
    for source, row, end, score in zip(sources, output.sequences, output.lengths, output.scores, strict=True):
        with torch.no_grad():
            log_probs = model(source[None]).logits[0].log_softmax(-1)
        assert len(log_probs) == end
        assert score.item() == pytest.approx(log_probs.gather(1, row[:end, None]).sum().item(), rel=1e-9)


@pytest.mark.parametrize("beam_size", [2, 6])
def test_the_beam_scores_at_least_as_high_as_greedy(beam_size):
    model = bnb_model()
    inputs = padded_form(source_ids(LENGTHS))
    greedy = model.generate(**inputs, return_scores=True)
    beam = model.generate(**inputs, return_scores=True, beam_size=beam_size)
    assert (beam.scores >= greedy.scores - 1e-9).all()
    assert (beam.scores > greedy.scores + 1e-9).any()
    assert torch.equal(model.generate(**inputs, beam_size=beam_size, token_budget=20), beam.sequences)


def test_greedy_outputs_within_the_limits_stay_and_the_others_are_searched():
    model = bnb_model()
    inputs = padded_form(source_ids(LENGTHS))
    greedy = model.generate(**inputs, return_scores=True)
    limit = int(greedy.lengths.median())
    limited = model.generate(**inputs, return_scores=True, max_length=limit)
    stays = greedy.lengths <= limit
    assert stays.any()
    assert not stays.all()
    assert (limited.lengths <= limit).all()
    kept = [rows_of(output.sequences[stays]) for output in (greedy, limited)]
    assert kept[0] == kept[1]


def test_lengths_of_length_classification_keep_the_limits():
    model = bnb_model(decoder_length="predicted")
    inputs = padded_form(source_ids(LENGTHS))
    lengths = model.generate(**inputs, return_scores=True, min_length=4, max_length=5).lengths
    assert lengths.min() >= 4
    assert lengths.max() <= 5
    free = model.generate(**inputs, return_scores=True, length_beam=3).lengths
    assert not torch.equal(lengths, free)


@pytest.mark.parametrize("how", [{}, {"beam_size": 3}, {"max_length": 2}, {"bad_words_ids": [[7], [8, 9]]}], ids=str)
def test_a_blank_penalty_lowers_the_blank_alone(how):
    model = bnb_model(decoder_length_ratio=2.0)
    blank = model.config.blank_token_id
    with torch.no_grad():
        model.lm_head.bias[blank] += 3.0  # most slots are blank
    inputs = padded_form(source_ids(LENGTHS))
    plain = model.generate(**inputs, **how, return_scores=True)
    penalised = model.generate(**inputs, **how, blank_penalty=2.0, return_scores=True)
    assert torch.equal(model.generate(**inputs, **how), plain.sequences), "the model itself is as it was"
    if not how:
        assert penalised.lengths.sum() > plain.lengths.sum()
    with torch.no_grad():
        model.lm_head.bias[blank] -= 2.0
    expected = model.generate(**inputs, **how, return_scores=True)
    assert torch.equal(penalised.sequences, expected.sequences)
    torch.testing.assert_close(penalised.scores, expected.scores)


@pytest.mark.parametrize("policy", ["source", "predicted"])
def test_bad_words_are_not_written(policy):
    model = bnb_model(decoder_length=policy)
    inputs = padded_form(source_ids(LENGTHS))
    written = {token for row in rows_of(model.generate(**inputs)) for token in row}
    bad = sorted(written)[:3]
    outputs = rows_of(model.generate(**inputs, bad_words_ids=[[token] for token in bad]))
    assert not {token for row in outputs for token in row} & set(bad)
    assert any(outputs)


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        ("source", {"beams": 3}, "generate has no setting 'beams'; did you mean 'beam_size'?"),
        ("source", {"beam_size": 0}, "beam_size is 0: give a whole number of at least 1"),
        ("source", {"beam_classes": True}, "beam_classes is True: give a whole number of at least 1"),
        ("source", {"min_length": -1}, "min_length is -1: give a whole number of at least 0"),
        ("source", {"min_length": 5, "max_length": 4}, "max_length is 4: give a whole number of at least 5"),
        ("source", {"token_budget": 0}, "token_budget is 0: give a whole number of at least 1"),
        ("source", {"length_beam": 2}, "with CTC use beam_size"),
        ("source", {"bad_words_ids": [[]]}, r"bad_words_ids holds \[\]: give one or more ids of 0 to 52"),
        ("source", {"bad_words_ids": [[53]]}, r"bad_words_ids holds \[53\]: give one or more ids of 0 to 52"),
        ("source", {"bad_words_ids": [[4, 0]]}, "0 is the CTC blank, which is never written: leave it out"),
        ("source", {"bad_words_ids": ["ab"]}, r"bad_words_ids holds \['a', 'b'\]: give one or more ids of 0 to 52"),
        ("source", {"bad_words_ids": [3]}, r"bad_words_ids is \[3\]: give a list of lists of token ids"),
        ("source", {"beam_size": 10**9}, "beam_size is 1000000000: give a whole number below 65536"),
        ("source", {"beam_size": 2, "lm": "x.arpa"}, "lm is of type str: give a bnb_ds.decoding.ngram_lm.NgramLm"),
        ("source", {"lm": object()}, "lm is used only in the beam search: give beam_size above 1"),
        ("source", {"lm_weight": float("nan")}, "lm_weight is nan: give a finite number"),
        ("source", {"lm_weight": float("inf")}, "lm_weight is inf: give a finite number"),
        ("source", {"word_bonus": float("-inf")}, "word_bonus is -inf: give a finite number"),
        ("source", {"word_bonus": True}, "word_bonus is True: give a finite number"),
        ("source", {"blank_penalty": float("nan")}, "blank_penalty is nan: give a finite number"),
        ("predicted", {"blank_penalty": 1.0}, "blank_penalty is 1.0: only slots of target 'ctc' may stay blank"),
        ("source", {"word_bonus": 0.5}, "lm_weight and word_bonus belong to a language model: give lm too"),
        ("source", {"lm_weight": 0.3, "beam_size": 4}, "lm_weight and word_bonus belong to a language model"),
        ("source", {"lookahead_beta": float("nan")}, "lookahead_beta is nan: give a finite number"),
        ("source", {"length_penalty": "1"}, "length_penalty is '1': give a finite number"),
        ("source", {"length_penalty": 10**400}, "length_penalty is 10+: give a finite number"),
        ("source", {"length_penalty": 2.0}, "length_penalty is 2.0: .*the model's target is 'ctc'; leave it out"),
        ("predicted", {"lookahead_beta": -1.0}, "lookahead_beta is -1.0: .*the model's target is 'token'; leave it"),
        ("source", {"merge_duplicates": False}, "merge_duplicates is False: .*the model's target is 'ctc'"),
        ("source", {"merge_duplicates": "no"}, "merge_duplicates is 'no': give true or false"),
        ("source", {"seed": 1 << 63}, "seed is 9223372036854775808: give a whole number below 9223372036854775808"),
        ("source", {"min_length": 1 << 31}, "min_length is 2147483648: give a whole number below 2147483648"),
        ("predicted", {"beam_size": 2}, "beam_size is 2: the prefix beam search needs CTC"),
        (
            "predicted",
            {"no_repeat_ngram_size": 2},
            "need CTC or a graph: leave them out with",
        ),
        (
            "predicted",
            {"bad_words_ids": [[4, 5]]},
            "need CTC or a graph: leave them out with",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(policy, options, message):
    model = bnb_model(decoder_length=policy)
    with pytest.raises(ConfigError, match=message):
        model.generate(torch.tensor([[4, 5]]), **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_weight_is_converted_once_and_again_when_it_changes(dtype):
    model = bnb_model(dtype=dtype)
    inputs = padded_form(source_ids(LENGTHS))
    first = model.generate(**inputs)
    assert torch.equal(model.generate(**inputs), first)
    with torch.no_grad():
        model.get_output_embeddings().weight.copy_(model.get_output_embeddings().weight.flip(0))
    assert not torch.equal(model.generate(**inputs), first)
