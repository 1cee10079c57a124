"""CTC prefix beam search against an enumeration of all paths, and its limits."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bnb_ds.decoding.beam import search
from bnb_ds.decoding.emissions import linear_emissions
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.decoding.search import Slots, ctc_score, refine
from tests.plain_beam import all_outputs, collapsed, prefix_beam, torch_score
from tests.tiny import layout_of

LENGTHS = [4, 1, 6, 3]
VOCAB = 4


def slots_of(seed=0, lengths=LENGTHS, vocab=VOCAB, blank=0, scale=1.5, dtype=torch.float64) -> Slots:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(sum(lengths), 5, generator=generator, dtype=dtype)
    weight = scale * torch.randn(vocab, 5, generator=generator, dtype=dtype)
    bias = torch.randn(vocab, generator=generator, dtype=dtype)
    return Slots(hidden, weight, bias, layout_of(lengths), blank)


def log_probs_of(slots: Slots) -> list[torch.Tensor]:
    rows = torch.nn.functional.linear(slots.hidden, slots.weight, slots.bias).log_softmax(-1)
    return list(rows.split(slots.layout.lengths.tolist()))


def outputs_of(slots: Slots, **options) -> list[tuple[int, ...]]:
    ids, lengths = refine(slots, DecodeOptions(**{"beam_size": 200, **options}))
    return [tuple(row[:end]) for row, end in zip(ids.tolist(), lengths.tolist(), strict=True)]


def best(table, rule=lambda output: True) -> tuple[int, ...]:
    return max((output for output in table if rule(output)), key=table.get)


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("seed", range(6))
def test_a_wide_beam_finds_the_most_probable_output(seed, blank):
    slots = slots_of(seed, blank=blank, scale=0.5)  # flat, so that the best path is often not the best output
    expected = [best(all_outputs(rows, blank)) for rows in log_probs_of(slots)]
    assert outputs_of(slots) == expected


def test_the_best_output_is_not_always_the_collapsed_best_path():
    found = 0
    for seed in range(6):
        slots = slots_of(seed, scale=0.5)
        greedy = [collapsed(tuple(rows.argmax(-1).tolist()), 0) for rows in log_probs_of(slots)]
        found += outputs_of(slots) != greedy
    assert found >= 2


@pytest.mark.parametrize("beam_size", [2, 3, 8])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_never_below_greedy_however_narrow(beam_size, classes):
    slots = slots_of(3, lengths=[40, 1, 17, 33, 2], vocab=11, scale=0.3)
    outputs = outputs_of(slots, beam_size=beam_size, beam_classes=classes)
    better = 0
    for rows, output in zip(log_probs_of(slots), outputs, strict=True):
        greedy = collapsed(tuple(rows.argmax(-1).tolist()), 0)
        ours, theirs = (torch_score(rows, list(tokens), 0) for tokens in (output, greedy))
        assert ours >= theirs - 1e-9
        better += ours > theirs + 1e-9
    assert better or classes == 1


def test_scores_are_those_of_torchs_loss():
    slots = slots_of(1, lengths=[9, 1, 14], vocab=7)
    ids, lengths = refine(slots, DecodeOptions(beam_size=4))
    scores = ctc_score(slots, ids, lengths)
    for rows, row, end, score in zip(log_probs_of(slots), ids.tolist(), lengths.tolist(), scores, strict=True):
        assert score.item() == pytest.approx(torch_score(rows, row[:end], 0), rel=1e-9)


def test_scores_of_many_sources_are_worked_out_in_groups(monkeypatch):
    slots = slots_of(2, lengths=[5, 3, 8, 2, 6], vocab=6)
    ids, lengths = refine(slots, DecodeOptions(beam_size=3))
    whole = ctc_score(slots, ids, lengths)
    monkeypatch.setattr("bnb_ds.decoding.emissions._SCORED_ROWS", 9)
    assert torch.equal(ctc_score(slots, ids, lengths), whole)


def _best_within(rows, rule) -> tuple[int, ...]:
    return best(all_outputs(rows, 0), lambda output: rule(output, len(rows)))


RULES = [
    ({"min_length": 3}, lambda output, slots: len(output) >= min(3, slots)),
    ({"max_length": 1}, lambda output, slots: len(output) <= 1),
    ({"min_length": 2, "max_length": 2}, lambda output, slots: len(output) == min(2, slots)),
    ({"no_repeat_ngram_size": 1}, lambda output, slots: len(set(output)) == len(output)),
    (
        {"no_repeat_ngram_size": 2},
        lambda output, slots: len(set(itertools.pairwise(output))) == max(len(output) - 1, 0),
    ),
    (
        {"bad_words_ids": [[1, 3], [2, 2]]},
        lambda output, slots: not {(1, 3), (2, 2)} & set(itertools.pairwise(output)),
    ),
]


@pytest.mark.parametrize(("options", "rule"), RULES, ids=[str(options) for options, _ in RULES])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_limits_keep_the_best_output_that_keeps_them(seed, options, rule):
    slots = slots_of(seed, scale=0.6)
    expected = [_best_within(rows, rule) for rows in log_probs_of(slots)]
    assert outputs_of(slots, **options) == expected


@pytest.mark.parametrize(("options", "rule"), RULES, ids=[str(options) for options, _ in RULES])
def test_a_narrow_beam_keeps_the_limits_too(options, rule):
    lengths = [30, 1, 17, 2, 25]
    outputs = outputs_of(slots_of(5, lengths=lengths, vocab=5), **options, beam_size=2, beam_classes=4)
    assert all(rule(output, count) for output, count in zip(outputs, lengths, strict=True))


def test_sequences_of_one_batch_do_not_meet():
    lengths = [12, 3, 20, 7]
    slots = slots_of(7, lengths=lengths, vocab=9, scale=0.4)
    together = outputs_of(slots, beam_size=4)
    assert [outputs_of(slots.select([row]), beam_size=4)[0] for row in range(4)] == together


def test_a_class_that_is_switched_off_is_never_written():
    slots = slots_of(0, lengths=[12, 5], vocab=6)
    slots.bias[3] = -torch.inf
    assert not any(3 in output for output in outputs_of(slots, beam_size=6, beam_classes=5))


def test_emissions_hold_the_best_classes_but_for_the_blank():
    slots = slots_of(4, vocab=6, blank=2)
    emissions = linear_emissions(slots.hidden, slots.weight, slots.bias, slots.layout, blank=2, num_classes=3)
    for row, log_probs in enumerate(log_probs_of(slots)):
        count = len(log_probs)
        assert torch.allclose(emissions.blank[row, :count], log_probs[:, 2])
        others = log_probs.clone()
        others[:, 2] = -torch.inf
        assert torch.allclose(emissions.log_probs[row, :count], others.topk(3).values)
        assert torch.equal(emissions.best[row, :count], log_probs.argmax(-1))
        assert (emissions.log_probs[row, count:] == -torch.inf).all()


def test_prefixes_of_the_beam_stay_distinct():
    """Also with more places than prefixes, where some places are unused."""
    slots = slots_of(8, lengths=[6, 9], vocab=4, scale=0.5)
    emissions = linear_emissions(slots.hidden, slots.weight, slots.bias, slots.layout, blank=0, num_classes=3)
    for beam_size in (5, 60, 300):
        beam = search(emissions, DecodeOptions(), beam_size)
        alive = beam.total > -torch.inf
        for row in range(2):
            found = [
                tuple(tokens[:end].tolist()) for tokens, end in zip(beam.tokens[row], beam.lengths[row], strict=True)
            ]
            living = [tokens for tokens, is_alive in zip(found, alive[row].tolist(), strict=True) if is_alive]
            assert len(set(living)) == len(living) >= 5


PLAIN_LIMITS = [
    ({}, lambda prefix: True),
    ({"max_length": 4}, lambda prefix: len(prefix) <= 4),
    ({"no_repeat_ngram_size": 1}, lambda prefix: len(set(prefix)) == len(prefix)),
    ({"no_repeat_ngram_size": 2}, lambda prefix: len(set(itertools.pairwise(prefix))) >= len(prefix) - 1),
    ({"bad_words_ids": [[1, 2], [2, 1, 2], [3, 3]]}, lambda prefix: not holds(prefix, (1, 2), (2, 1, 2), (3, 3))),
]


def holds(prefix, *sequences) -> bool:
    return any(prefix[begin : begin + len(words)] == words for words in sequences for begin in range(len(prefix)))


def kept_by(slots, beam_size, classes, **options) -> list[dict[tuple[int, ...], float]]:
    emissions = linear_emissions(slots.hidden, slots.weight, slots.bias, slots.layout, blank=0, num_classes=classes)
    found = search(emissions, DecodeOptions(**options), beam_size)
    return [
        {tuple(tokens[:end]): score for tokens, end, score in zip(*row, strict=True) if score > -torch.inf}
        for row in zip(found.tokens.tolist(), found.lengths.tolist(), found.total.tolist(), strict=True)
    ]


@pytest.mark.parametrize(("options", "allows"), PLAIN_LIMITS, ids=[str(options) for options, _ in PLAIN_LIMITS])
@pytest.mark.parametrize(("beam_size", "classes"), [(2, 3), (8, 5), (32, 2)])
def test_the_search_keeps_the_prefixes_of_a_plain_one(options, allows, beam_size, classes):
    slots = slots_of(11, lengths=[5, 31, 1, 31, 18], vocab=6, scale=0.3)
    found = kept_by(slots, beam_size, classes, **options)
    for ours, rows in zip(found, log_probs_of(slots), strict=True):
        expected = prefix_beam(rows, 0, beam_size, classes, allows)
        assert ours.keys() == expected.keys()
        assert ours == pytest.approx(expected, abs=1e-12, rel=0)


class _Elements(TorchDispatchMode):
    """Counts the elements of all tensors that are made."""

    made = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        self.made += sum(part.numel() for part in tree_leaves(result) if isinstance(part, torch.Tensor))
        return result


def test_a_slot_costs_the_same_however_many_came_before_it():
    """Not so if each slot copies the tokens of all prefixes."""
    made = {}
    for length in (100, 400):
        slots = slots_of(0, lengths=[length], vocab=9)
        emissions = linear_emissions(slots.hidden, slots.weight, slots.bias, slots.layout, blank=0, num_classes=4)
        with _Elements() as elements:
            search(emissions, DecodeOptions(), 32)
        made[length] = elements.made
    assert made[400] < 4.4 * made[100]


@pytest.mark.parametrize("beam_size", [8, 32])
def test_unused_places_of_the_beam_are_never_scored(beam_size):
    """Here only two outputs are allowed, so nearly all places stay unused."""
    slots = slots_of(2, lengths=[6, 3, 9], vocab=8, scale=0.5)
    options = {"beam_size": beam_size, "no_repeat_ngram_size": 1}
    bad_words_ids = [[token] for token in range(1, 8) if token != 4]
    slots.bias[[words[0] for words in bad_words_ids]] = -torch.inf  # as `decode_batch` does
    outputs = outputs_of(slots, bad_words_ids=bad_words_ids, **options)
    for rows, output in zip(log_probs_of(slots), outputs, strict=True):
        assert output == max(((), (4,)), key=lambda tokens: torch_score(rows, list(tokens), 0))
