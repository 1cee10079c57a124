"""Fair turns between clients, and what a text costs."""

from __future__ import annotations

import collections
from dataclasses import dataclass

import pytest

from bnb_ds.decoding.options import CONSTRAINT_BEAM, DecodeOptions
from tests.tiny import bnb_config

pytest.importorskip("prometheus_client", reason="the extra [serve] is not installed")

from bnb_ds.serve.batcher import Work, text_costs
from bnb_ds.serve.turns import Turns


@dataclass(frozen=True, eq=False)
class Text:
    client: tuple[str, int]
    cost: int = 1
    work: str = "greedy"


def taken(turns: Turns, budget: int, times: int) -> list[str]:
    """The addresses of the next batches."""
    return ["".join(item.client[0] for item in turns.take(budget)) for _ in range(times)]


def filled(*texts: Text) -> Turns:
    turns = Turns()
    for text in texts:
        turns.add(text)
    return turns


def test_one_client_is_served_in_order():
    texts = [Text(("a", 1)) for _ in range(5)]
    turns = filled(*texts)
    assert turns.take(3) == texts[:3]
    assert (len(turns), turns.cost, turns.oldest) == (2, 2, texts[3])
    assert turns.take(3) == texts[3:]


def test_addresses_take_turns_whatever_the_length_of_their_queues():
    turns = filled(*[Text(("a", 1))] * 0, *[Text(("a", n % 3)) for n in range(90)], *[Text(("b", 1)) for _ in range(3)])
    assert taken(turns, 2, 4) == ["ab", "ab", "ab", "aa"]


def test_connections_of_one_address_take_turns():
    many, one = [Text(("a", 1)) for _ in range(50)], Text(("a", 2))
    assert one in filled(*many, one).take(2)


def test_a_wide_beam_waits_for_the_others():
    """A beam that costs as much as 40 texts gets one turn in 41, and is not forgotten."""
    turns = filled(*[Text(("b", 1), 40, "beam") for _ in range(3)], *[Text(("a", 1)) for _ in range(200)])
    order = "".join(taken(turns, 1, 203))
    places = [place for place, who in enumerate(order) if who == "b"]
    assert places[0] <= 1
    assert 38 <= places[1] - places[0] <= 42
    assert 38 <= places[2] - places[1] <= 42


def test_debts_outlive_a_request_and_absence_earns_nothing():
    turns = filled(Text(("b", 1), 40), *[Text(("a", 1)) for _ in range(5)])
    assert taken(turns, 1, 1) == ["b"]
    turns.add(Text(("b", 1), 40))
    assert taken(turns, 1, 6) == ["a"] * 5 + ["b"]
    turns = filled(*[Text(("a", 1)) for _ in range(100)])
    taken(turns, 1, 90)
    for _ in range(10):
        turns.add(Text(("b", 1)))
    assert collections.Counter(taken(turns, 1, 10))["b"] in (5, 6)


def test_a_connection_for_each_request_gains_nothing():
    turns, order = filled(*[Text(("a", 0)) for _ in range(40)]), ""
    for number in range(1, 60):
        turns.add(Text(("a", number), 10))
        order += str(min(turns.take(1)[0].client[1], 1))
    assert order.count("0") > 20, "the old connection gets its turns between the new ones"


def test_a_batch_has_one_kind_of_work_within_the_budget():
    turns = filled(
        Text(("a", 1), 3), Text(("b", 1), 3, "beam"), Text(("c", 1), 3), Text(("d", 1), 9), Text(("e", 1), 3, "beam")
    )
    batches = []
    while len(turns):
        batches.append([(item.client[0], item.work) for item in turns.take(7)])
    assert batches[0] == [("a", "greedy"), ("c", "greedy")]
    assert [("b", "beam"), ("e", "beam")] in batches
    assert [("d", "greedy")] in batches  # alone, because it is larger than the budget
    assert turns.cost == 0


def test_discarded_texts_are_gone():
    texts = [Text(("a", 1)) for _ in range(3)]
    turns = filled(*texts)
    turns.discard(texts[1])
    turns.discard(texts[1])
    assert turns.take(9) == [texts[0], texts[2]]
    turns.discard(texts[0])
    assert (len(turns), turns.cost) == (0, 0)


def test_memory_of_past_clients_is_bounded():
    turns = Turns()
    for number in range(20_000):
        turns.add(Text((f"address {number}", number)))
        turns.take(1)
    assert len(turns._connections) <= 1025
    assert len(turns._addresses._times) <= 1025


def test_costs_are_beam_times_slots():
    sizes = {"max_position_embeddings": 512}
    config = bnb_config(sizes, sizes, decoder_length_ratio=2.0)
    assert text_costs([0, 10, 500], Work(DecodeOptions()), config) == [3, 30, 1500]
    assert text_costs([10], Work(DecodeOptions(beam_size=32)), config) == [10 + 20 * 32]
    assert text_costs([10], Work(DecodeOptions(max_length=5)), config) == [10 + 20 * CONSTRAINT_BEAM]
    assert text_costs([10], Work(DecodeOptions(), with_slots=True), config) == [60]
    assert text_costs([10], Work(DecodeOptions(refinement=3, beam_size=2)), config) == [10 + 20 * 2 * 4]
    padded = bnb_config(sizes, sizes, decoder_length="padded")
    assert text_costs([1, 512], Work(DecodeOptions()), padded) == [1024, 1024]
