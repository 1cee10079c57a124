"""Which slots see their target token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bnb_ds.common.packing import lowest_of_each
from bnb_ds.config.sections import GlancingSection
from bnb_ds.targets.ctc_target import CtcTarget
from bnb_ds.targets.dag_target import DagTarget
from bnb_ds.targets.glancing import glance_by_chance, rounded_down, rounded_half_up, same_dropout
from bnb_ds.targets.interface import SlotStates, Targets
from bnb_ds.targets.token_target import TokenTarget
from tests.tiny import layout_of

VECTORS = Path(__file__).resolve().parents[3].parent / "shared" / "nar" / "vectors.json"


def states_of(logits_TV, lengths, links=None):
    """Slots whose logits are these: hidden states are logits, and the head is the identity."""
    size = logits_TV.shape[1]
    weight = torch.eye(size, dtype=logits_TV.dtype)
    return SlotStates(logits_TV, weight, torch.zeros(size, dtype=logits_TV.dtype), layout_of(lengths), links)


def test_counts_and_schedules_of_the_vectors():
    if not VECTORS.is_file():
        pytest.skip(f"no vectors at {VECTORS}")
    glancing = json.loads(VECTORS.read_text())["glancing"]
    for case in glancing["counts"]:
        wrong = torch.tensor([case["tokens"] - case["agreeing"]])
        assert rounded_down(case["ratio"], wrong).item() == case["floor"]
        assert rounded_half_up(case["ratio"], wrong).item() == case["round_half_up"]
    sections = {
        "GLAT 0.5 to 0.3 over 300,000": GlancingSection(start=0.5, end=0.3, steps=300_000),
        "DAT 0.5 to 0.1 over 200,000": GlancingSection(start=0.5, end=0.1),  # over the whole run
    }
    for case in glancing["schedules"]:
        assert sections[case["name"]].ratio(case["step"], 200_000) == pytest.approx(case["ratio"], abs=1e-12)


def test_some_slots_are_those_with_the_lowest_draws():
    layout = layout_of([4, 3])
    draws = torch.tensor([0.9, 0.1, 0.5, 0.3, 0.2, 0.2, 0.2])
    may = torch.tensor([True, False, True, True, True, True, True])
    given = lowest_of_each(may, torch.tensor([2, 2]), draws, layout)
    assert given.tolist() == [False, False, True, True, True, True, False]
    everything = lowest_of_each(may, torch.tensor([9, 0]), draws, layout)
    assert everything.tolist() == [True, False, True, True, False, False, False]


def test_chance_is_the_ratio_times_the_share_of_wrong_slots():
    layout = layout_of([4, 2])
    wrong = torch.tensor([True, True, False, False, True, True])
    draws = torch.tensor([0.24, 0.26, 0.0, 0.9, 0.49, 0.51])
    given = glance_by_chance(wrong, 0.5, draws, layout)
    assert given.tolist() == [True, False, True, False, True, False]


def test_token_slots_and_their_loss():
    """Ratio 1 with every slot wrong shows everything: no sum, and no count."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 6, dtype=torch.float64, generator=generator)
    tokens = logits.argmin(1).clamp(min=1)
    states, targets = states_of(logits, [3, 2]), Targets(tokens, torch.tensor([3, 2]))
    target = TokenTarget()
    oracle = target.align(states, targets)
    assert oracle.tolist() == [0, 1, 2, 0, 1]
    draws = torch.tensor([0.3, 0.1, 0.2, 0.6, 0.5])
    assert not target.glanced(states, targets, oracle, 0.0, draws).any()
    half = target.glanced(states, targets, oracle, 0.5, draws)
    assert half.tolist() == [False, True, False, False, True]
    nll = -logits.log_softmax(1).gather(1, tokens[:, None])[:, 0]
    scores = target.scores(states, targets, half)
    assert scores.loss_sum.item() == pytest.approx((3 * (nll[0] + nll[2]) / 2 + 2 * nll[3]).item(), abs=1e-12)
    assert scores.count.item() == 5
    everything = target.glanced(states, targets, oracle, 1.0, draws)
    nothing = target.scores(states, targets, everything)
    assert everything.all()
    assert (nothing.loss_sum.item(), nothing.count.item()) == (0.0, 0)
    plain = target.scores(states, targets)
    assert plain.loss_sum.item() == pytest.approx(nll.sum().item(), abs=1e-12)
    none_given = target.scores(states, targets, torch.zeros(5, dtype=torch.bool))
    assert none_given.loss_sum.item() == pytest.approx(nll.sum().item(), abs=1e-12)


def test_blank_slots_of_ctc_stay_masked():
    logits = torch.zeros(4, 4, dtype=torch.float64)
    for slot, token in enumerate([1, 0, 2, 0]):
        logits[slot, token] = 3.0
    states, targets = states_of(logits, [4]), Targets(torch.tensor([1, 2]), torch.tensor([2]))
    target = CtcTarget()
    oracle = target.align(states, targets)
    assert oracle.tolist() == [0, -1, 1, -1]
    # All slots agree with the best path, so that nothing is shown, whatever the ratio.
    assert not target.glanced(states, targets, oracle, 1.0, torch.zeros(4)).any()
    wrong = states_of(logits.roll(1, 1), [4])
    assert target.glanced(wrong, targets, oracle, 1.0, torch.zeros(4)).tolist() == [True, False, True, False]


def test_only_slots_of_the_best_path_of_a_graph_are_shown():
    links = torch.full((1, 4, 4), -torch.inf, dtype=torch.float64)
    links[0, 0, 1:] = torch.tensor([0.2, 0.7, 0.1]).log()
    links[0, 1, 2:] = torch.tensor([0.5, 0.5]).log()
    links[0, 2, 3] = 0.0
    logits = torch.zeros(4, 5, dtype=torch.float64)
    logits[:, 4] = 2.0  # every slot would write 4
    states = states_of(logits, [4], links)
    targets = Targets(torch.tensor([1, 2, 3]), torch.tensor([3]))
    target = DagTarget()
    oracle = target.align(states, targets)
    assert oracle.tolist() == [0, -1, 1, 2]
    draws = torch.tensor([0.9, 0.0, 0.5, 0.1])
    # 3 wrong slots: 1.5 rounded half up.
    assert target.glanced(states, targets, oracle, 0.5, draws).tolist() == [False, False, True, True]


def test_tokens_are_looked_up_in_their_own_target():
    targets = Targets(torch.tensor([7, 8, 9, 5]), torch.tensor([3, 1]))
    assert targets.at(torch.tensor([2, -1, 0, 0, -1]), layout_of([3, 2])).tolist() == [9, -1, 7, 5, -1]


def test_dropout_of_both_passes_is_the_same():
    torch.manual_seed(3)
    ones = torch.ones(50)
    with same_dropout(torch.device("cpu")):
        first = torch.nn.functional.dropout(ones)
    assert torch.equal(first, torch.nn.functional.dropout(ones))
    assert not torch.equal(first, torch.nn.functional.dropout(ones))


def test_what_fits_a_graph():
    import numpy as np

    lengths, slots = np.array([0, 1, 1, 2, 3, 5]), np.array([1, 1, 2, 2, 2, 5])
    fits = DagTarget().fits(lengths, np.zeros(6), slots)
    assert fits.tolist() == [False, True, False, True, False, True]
