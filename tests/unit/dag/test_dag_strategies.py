"""Reading outputs off a graph, against enumeration of its paths."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bnb_ds.dag import strategies
from bnb_ds.dag.beam_search import BeamOptions, search
from bnb_ds.dag.strategies import STRATEGIES, DagOptions, dag_decode, decode_best
from tests.plain_dag import output_probabilities, path_log_prob, paths, random_links

VOCAB = 3


def graph(num_slots: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log-probabilities [L, V] and links [L, L]."""
    generator = torch.Generator().manual_seed(100 + seed)
    emissions = 1.5 * torch.randn(num_slots, VOCAB, dtype=torch.float64, generator=generator)
    return emissions.log_softmax(1), random_links(num_slots, seed, sigma=1.5)


def batch(lengths: list[int], fill: float = math.nan) -> tuple[Tensor, Tensor, Tensor]:
    """Graphs in padded form, ``fill`` beyond lengths and below the diagonal."""
    longest = max(lengths)
    emissions, links = zip(*(graph(n, seed) for seed, n in enumerate(lengths)), strict=True)
    padded = [F.pad(one, (0, 0, 0, longest - len(one)), value=fill) for one in emissions]
    links = [F.pad(one, (0, longest - len(one), 0, longest - len(one)), value=fill) for one in links]
    is_backward = torch.ones(longest, longest, dtype=torch.bool).tril()
    return torch.stack(padded), torch.stack(links).masked_fill(is_backward, fill), torch.tensor(lengths)


def plain_walk(log_probs: Tensor, links: Tensor, beta: float) -> list[int]:
    path = [0]
    while path[-1] < len(links) - 1:
        path.append(int((links[path[-1]] + beta * log_probs.amax(1)).argmax()))
    return path


def plain_viterbi(log_probs: Tensor, links: Tensor, joint: bool, penalty: float, shortest: int, longest: float):
    best = log_probs.amax(1)

    def score(path):
        total = path_log_prob(links, path) + (sum(best[slot] for slot in path) if joint else 0)
        return total.item() / len(path) ** penalty

    every = list(paths(len(links)))
    longest = max(longest, min(len(links), 2))
    shortest = min(shortest, max(len(path) for path in every))
    return list(max((path for path in every if shortest <= len(path) <= longest), key=score))


def written(log_probs: Tensor, path: list[int], merge: bool) -> list[int]:
    tokens = log_probs.argmax(1)[path].tolist()
    return [token for token, _ in itertools.groupby(tokens)] if merge else tokens


LENGTHS = [7, 1, 2, 5, 8, 3]


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
def test_walks(beta, merge):
    emissions, links, lengths = batch(LENGTHS)
    ids, out_lengths = dag_decode(
        emissions, links, lengths, "lookahead", lookahead_beta=beta, merge_duplicates=merge, pad=9
    )
    assert ids.dtype == out_lengths.dtype == torch.int64
    for seed, n in enumerate(LENGTHS):
        expected = written(graph(n, seed)[0], plain_walk(*graph(n, seed), beta), merge)
        assert ids[seed].tolist() == expected + [9] * (8 - len(expected))
        assert out_lengths[seed] == len(expected)
    if beta == 0:
        greedy = dag_decode(emissions, links, lengths, merge_duplicates=merge, pad=9)
        assert torch.equal(greedy[0], ids)
        assert torch.equal(greedy[1], out_lengths)


@pytest.mark.parametrize("limits", [(0, None), (3, None), (0, 3), (4, 4), (2, 6), (40, None), (0, 1)], ids=str)
@pytest.mark.parametrize("penalty", [0.0, 0.5, 1.0, 3.5])
@pytest.mark.parametrize("strategy", ["viterbi", "joint_viterbi"])
def test_viterbi(strategy, penalty, limits):
    emissions, links, lengths = batch(LENGTHS)
    ids, out_lengths = dag_decode(
        emissions,
        links,
        lengths,
        strategy,
        length_penalty=penalty,
        merge_duplicates=False,
        min_length=limits[0],
        max_length=limits[1],
    )
    for seed, n in enumerate(LENGTHS):
        log_probs, own = graph(n, seed)
        longest = math.inf if limits[1] is None else limits[1]
        path = plain_viterbi(log_probs, own, strategy == "joint_viterbi", penalty, limits[0], longest)
        assert ids[seed, : out_lengths[seed]].tolist() == written(log_probs, path, False)


def test_a_high_length_penalty_gives_the_longest_path():
    log_probs, links = graph(8)
    _, lengths = dag_decode(
        log_probs[None], links[None], torch.tensor([8]), "joint_viterbi", length_penalty=10, merge_duplicates=False
    )
    assert lengths.tolist() == [8]


def ranked(log_probs: Tensor, links: Tensor, options: BeamOptions, **more):
    best = log_probs.sort(1, descending=True)
    return search(best.indices.numpy(), best.values.numpy(), links.numpy(), options, **more)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("num_slots", [1, 2, 5])
def test_a_beam_that_drops_nothing_knows_every_output(num_slots, merge):
    log_probs, links = graph(num_slots)
    found = ranked(log_probs, links, BeamOptions(10**6, 10**6), length_penalty=0.0, merge_duplicates=merge)
    expected = output_probabilities(log_probs, links, merge_duplicates=merge)
    assert {one.tokens: math.exp(one.log_prob) for one in found} == pytest.approx(expected, abs=1e-12)
    scores = sorted((math.log(p) for p in expected.values()), reverse=True)
    assert [one.score for one in found] == pytest.approx(scores, abs=1e-12)


@pytest.mark.parametrize("limits", [(0, 3), (4, None), (3, 3), (9, None)], ids=str)
@pytest.mark.parametrize("merge", [True, False])
def test_a_beam_keeps_to_limits_of_length(merge, limits):
    log_probs, links = graph(6)
    shortest, longest = limits[0], limits[1] or math.inf
    found = ranked(
        log_probs,
        links,
        BeamOptions(10**6, 10**6),
        merge_duplicates=merge,
        min_length=limits[0],
        max_length=limits[1],
    )
    expected = output_probabilities(log_probs, links, merge_duplicates=merge)
    kept = {text for text in expected if min(shortest, 6) <= len(text) <= longest}
    assert {one.tokens for one in found} == kept
    for one in found:
        assert one.score == pytest.approx(math.log(expected[one.tokens]) / len(one.tokens), abs=1e-12)


def test_a_language_model_moves_the_beam():
    log_probs, links = graph(5)
    asked = []

    def lm(text, token):
        asked.append((*text, token))
        return 0.0 if token == 2 else -3.0

    options = BeamOptions(10**6, 10**6, lm, lm_weight=0.5)
    found = ranked(log_probs, links, options, length_penalty=0.7, merge_duplicates=False)
    assert len(set(asked)) == len(asked), "each text is asked about once"
    for one in found:
        nats = -1.5 * sum(token != 2 for token in one.tokens)
        assert one.score == pytest.approx((one.log_prob + nats) / len(one.tokens) ** 0.7, abs=1e-12)
    assert set(ranked(log_probs, links, BeamOptions(50, 50, lm, lm_weight=50.0))[0].tokens) == {2}


def test_strategies_in_order_of_probability():
    """With no penalty: beam (of an output) >= joint Viterbi >= look-ahead (of an output and its path)."""
    for seed in range(20):
        log_probs, links = graph(9, seed)
        best = log_probs.amax(1)

        def joint(path, links=links, best=best):
            return path_log_prob(links, tuple(path)).item() + best[path].sum().item()

        walk = joint(plain_walk(log_probs, links, 1.0))
        _, _, score = strategies.viterbi(best[None], links[None], torch.tensor([8]), 0.0)
        beam = ranked(log_probs, links, BeamOptions(50, 20), length_penalty=0.0, merge_duplicates=False)
        assert beam[0].log_prob >= score[0] - 1e-12
        assert score[0] >= walk - 1e-12


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_output_does_not_depend_on_its_company(strategy):
    emissions, links, lengths = batch(LENGTHS)
    ids, out_lengths = dag_decode(emissions.float(), links.float(), lengths, strategy, keys=range(len(LENGTHS)))
    for index, n in enumerate(LENGTHS):
        log_probs, own = graph(n, index)
        inputs = (log_probs[None].float(), own[None].float(), torch.tensor([n]))
        alone, length = dag_decode(*inputs, strategy, keys=[index])
        assert length[0] == out_lengths[index]
        assert torch.equal(alone[0, : length[0]], ids[index, : length[0]])
        assert (ids[index, length[0] :] == 0).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_slot_without_a_way_on_leads_to_the_last(strategy):
    log_probs, links = graph(5)
    links[0] = torch.tensor([-math.inf, 0, -math.inf, -math.inf, -math.inf])
    links[1] = -math.inf
    options = {"merge_duplicates": False, "top_p": 1e-9}
    ids, lengths = dag_decode(log_probs[None], links[None], torch.tensor([5]), strategy, **options)
    slots = [0, 1, 4] if strategy in ("greedy", "lookahead", "sample") else [0, 4]
    assert ids[0, : lengths[0]].tolist() == log_probs.argmax(1)[slots].tolist()


def test_a_beam_that_the_limits_shut_out_gives_way_to_viterbi():
    log_probs, links = graph(6)
    options = {"max_length": 2, "merge_duplicates": False}
    links[0, 5] = -12.0  # the only output of two tokens, and no candidate of the beam
    links[0] = links[0].log_softmax(0)
    narrow = dag_decode(log_probs[None], links[None], torch.tensor([6]), "beam", beam_size=1, candidates=1, **options)
    joint = dag_decode(log_probs[None], links[None], torch.tensor([6]), "joint_viterbi", **options)
    assert narrow[1].tolist() == [2]
    assert torch.equal(narrow[0], joint[0])


@pytest.mark.parametrize("strategy", ["greedy", "lookahead"])
def test_nothing_waits_for_a_device(strategy):
    """A tensor without values cannot be looked into: whatever asks for one raises."""
    emissions, links = torch.empty(3, 9, 5, device="meta"), torch.empty(3, 9, 9, device="meta")
    lengths = torch.empty(3, device="meta", dtype=torch.int64)
    ids, out_lengths = dag_decode(emissions, links, lengths, strategy)
    assert ids.shape == (3, 9)
    assert out_lengths.shape == (3,)
    assert ids.device.type == out_lengths.device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        out_lengths.amax().item()


class Reader(torch.nn.Module):
    """A strategy as a module, for exporting."""

    def __init__(self, strategy: str, most_slots: int):
        super().__init__()
        self.options, self.most_slots = DagOptions(strategy), most_slots

    def forward(self, log_probs: Tensor, links: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        best = log_probs.max(2)
        return decode_best(best.indices, best.values, links, lengths, self.options, most_slots=self.most_slots)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["greedy", "lookahead"])
def test_walks_can_be_exported_for_any_number_of_slots(strategy):
    emissions, links, lengths = batch(LENGTHS, fill=0.0)
    size, slots = torch.export.Dim("size", min=1, max=64), torch.export.Dim("slots", min=2, max=64)
    program = torch.export.export(
        Reader(strategy, 64),
        (emissions, links, lengths),
        dynamic_shapes=({0: size, 1: slots}, {0: size, 1: slots, 2: slots}, {0: size}),
    )
    for other in (LENGTHS, [33, 2, 64], [4, 4]):
        case = batch(other, fill=0.0)
        ids, out_lengths = program.module()(*case)
        expected = dag_decode(*case, strategy)
        assert torch.equal(ids, expected[0])
        assert torch.equal(out_lengths, expected[1])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["greedy", "lookahead"])
def test_walks_run_in_onnxruntime(strategy, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    axes = ({0: "size", 1: "slots"}, {0: "size", 1: "slots", 2: "slots"}, {0: "size"})
    case = [tensor.float() if tensor.is_floating_point() else tensor for tensor in batch(LENGTHS, fill=0.0)]
    program = torch.onnx.export(Reader(strategy, 64).eval(), tuple(case), dynamo=True, dynamic_shapes=axes)
    program.save(tmp_path / "walk.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "walk.onnx", providers=["CPUExecutionProvider"])
    for other in (LENGTHS, [33, 2, 64]):
        case = [tensor.float() if tensor.is_floating_point() else tensor for tensor in batch(other, fill=0.0)]
        names = [given.name for given in session.get_inputs()]
        got = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, case, strict=True)})
        for ours, expected in zip(got, dag_decode(*case, strategy), strict=True):
            assert ours.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"strategy": "look-ahead"}, ValueError, "strategy is 'look-ahead': did you mean 'lookahead'?"),
        ({"strategy": "guess"}, ValueError, "strategy is 'guess': known: beam, greedy"),
        ({"lookahead_beta": -0.1}, ValueError, "lookahead_beta is -0.1: give a finite number of at least 0"),
        ({"lookahead_beta": math.inf}, ValueError, "lookahead_beta is inf"),
        ({"length_penalty": -1.0}, ValueError, "length_penalty is -1.0: give a number from 0 to 10.0"),
        ({"length_penalty": 10.5}, ValueError, "length_penalty is 10.5"),
        ({"length_penalty": math.nan}, ValueError, "length_penalty is nan"),
        ({"min_length": -1, "strategy": "beam"}, ValueError, "min_length is -1: give at least 0"),
        ({"max_length": 0, "strategy": "beam"}, ValueError, "max_length is 0: give at least 1 and at least min_length"),
        ({"min_length": 5, "max_length": 4, "strategy": "viterbi"}, ValueError, "max_length is 4: give at least 1 and"),
        ({"min_length": 3}, ValueError, "strategy 'greedy' keeps to no min_length or max_length: use one of viterbi"),
        ({"max_length": 3, "strategy": "lookahead"}, ValueError, "strategy 'lookahead' keeps to no"),
        ({"beam_size": 0, "strategy": "beam"}, ValueError, "beam_size is 0: give a whole number of at least 1"),
        ({"candidates": 0, "strategy": "beam"}, ValueError, "candidates is 0: give a whole number of at least 1"),
        ({"beam_size": 2.5, "strategy": "beam"}, ValueError, "beam_size is 2.5: give a whole number of at least 1"),
        ({"lookahead_beta": "1"}, ValueError, "lookahead_beta is '1': give a number"),
        (
            {"keys": [1], "strategy": "sample"},
            ValueError,
            r"keys are \[1\]: give a whole number of at least 0 for each of 2",
        ),
        ({"keys": [1, -1], "strategy": "sample"}, ValueError, r"keys are \[1, -1\]: give a whole number"),
        ({"keys": [1, 0.5], "strategy": "sample"}, ValueError, r"keys are \[1.0, 0.5\]: give a whole number"),
        ({"lm_weight": math.nan, "strategy": "beam"}, ValueError, "lm_weight is nan: give a finite number"),
        ({"log_probs": torch.zeros(2, 3)}, ValueError, r"log_probs has shape \(2, 3\): give \[B, L, V\]"),
        ({"log_links": torch.zeros(2, 3, 4)}, ValueError, r"log_links has shape \(2, 3, 4\): .* B = 2 and L = 3"),
        ({"log_links": torch.full((2, 3, 3), math.nan)}, ValueError, "log_links holds NaN: a link must be a log-prob"),
        ({"lengths": torch.tensor([3, 0])}, ValueError, "lengths holds 0: lengths must lie between 1 and 3"),
        ({"lengths": torch.tensor([4, 1])}, ValueError, "lengths holds 4: lengths must lie between 1 and 3"),
        ({"lengths": torch.tensor([3])}, ValueError, r"lengths has shape \(1,\): give \[2\]"),
        ({"lengths": torch.tensor([3.0, 2.0])}, TypeError, "lengths has dtype torch.float32: give integers"),
        ({"lengths": [3, 2]}, TypeError, "lengths is of type list: give a tensor of integers"),
        ({"log_links": torch.zeros(2, 3, 3).long()}, TypeError, "log_links has dtype torch.int64: give log-prob"),
        ({"strategy": 3}, ValueError, "strategy is 3: known: beam, greedy"),
        ({"min_length": 2.5, "strategy": "beam"}, ValueError, "min_length is 2.5: give a whole number"),
        ({"min_length": None, "strategy": "beam"}, ValueError, "min_length is None: give a whole number"),
        ({"max_length": "4", "strategy": "viterbi"}, ValueError, "max_length is '4': give a whole number"),
    ],
)
def test_wrong_input_is_refused(changes, error, message):
    good = {"log_probs": torch.zeros(2, 3, 4), "log_links": torch.zeros(2, 3, 3), "lengths": torch.tensor([3, 2])}
    with pytest.raises(error, match=message):
        dag_decode(**{**good, **changes})


def test_a_batch_of_no_graphs():
    ids, lengths = dag_decode(torch.zeros(0, 3, 4), torch.zeros(0, 3, 3), torch.zeros(0, dtype=torch.int64))
    assert ids.shape == (0, 3)
    assert lengths.shape == (0,)
