"""How many operations a GPU would launch: as many for positions as for twice as many, on every path.

The stand-in for a GPU has no kernels, so every recurrence takes its last resort. Results are compared with the CPU's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bnb_ds.ctc import recursion
from bnb_ds.ctc.loss import linear_ctc_loss
from bnb_ds.ctc.ngram_matches import linear_ctc_ngram_loss
from bnb_ds.ctc.viterbi import linear_ctc_best_path
from bnb_ds.dag.links import LinkNetwork
from bnb_ds.dag.loss import linear_dag_loss
from bnb_ds.dag.ngrams import linear_dag_ngram_loss
from bnb_ds.dag.paths import dag_best_path
from bnb_ds.dag.strategies import STRATEGIES, dag_decode
from bnb_ds.decoding.decode import generate
from tests import tiny
from tests.stand_in import ELSEWHERE, Far, elsewhere, moved
from tests.unit.train.test_waits import GRAPH, MODELS, TOKENS, model_of, take_step

HIDDEN, VOCAB, FEW = 6, 30, 12
#: of a round in which a walk along the best links jumps twice as far
OF_A_ROUND = 6
#: to pick out the slots of a graph that matter, where not all do
PICKED = 25
WIDE = {"encoder": {"max_position_embeddings": 60}, "decoder": {"max_position_embeddings": 60}}


def links_of(lengths: list[int]) -> Tensor:
    scores = torch.randn(len(lengths), max(lengths), max(lengths), generator=torch.Generator().manual_seed(1)).double()
    slot = torch.arange(max(lengths))
    is_link = (slot[:, None] < slot) & (slot < torch.tensor(lengths)[:, None])[:, None]
    links = scores.masked_fill(~is_link, -torch.inf).log_softmax(2)
    return torch.where(is_link, links, -torch.inf)


def losses(function: Callable[..., Any], positions: int, there: Callable[[Tensor], Tensor], **options: Any) -> list:
    """Value and gradients, or a path, of two sequences."""
    generator = torch.Generator().manual_seed(0)
    lengths, tokens = [positions, positions - 1], [positions // 4, positions // 4 - 1]
    shapes = ((sum(lengths), HIDDEN), (VOCAB, HIDDEN), (VOCAB,))
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    if "dag" in function.__name__:
        leaves.append(links_of(lengths))
    leaves = [there(leaf).requires_grad_() for leaf in leaves]
    targets = there(torch.randint(1, VOCAB, (sum(tokens),), generator=generator))
    sizes = {"max_input_length": lengths[0], "max_target_length": tokens[0], "chunk_tokens": sum(lengths)}
    cu_seqlens = there(torch.tensor([0, *lengths]).cumsum(0).int())
    out = function(*leaves, targets, None, there(torch.tensor(tokens)), cu_seqlens=cu_seqlens, **sizes, **options)
    if "path" in function.__name__:
        return list(out)
    (out.loss if out.loss.dim() == 0 else out.loss.sum()).backward()
    return [out.loss.detach(), *(leaf.grad for leaf in leaves)]


def links(positions: int, there: Callable[[Tensor], Tensor]) -> list[Tensor]:
    torch.manual_seed(0)
    network = LinkNetwork(HIDDEN, 2, 100).double()
    network = network if there(torch.ones(1)).device.type == "cpu" else moved(network)
    hidden = there(torch.randn(2 * positions - 1, HIDDEN).double()).requires_grad_()
    layout = tiny.layout_of([positions, positions - 1])
    out = network(hidden, layout if hidden.device.type == "cpu" else _there(layout))
    out.masked_fill(out == -torch.inf, 0.0).sum().backward()
    return [out.detach(), hidden.grad]


def _there(layout: Any) -> Any:
    lengths = layout.lengths
    return type(layout).from_lengths(Far(lengths), num_tokens=layout.num_tokens, max_seqlen=layout.max_seqlen)


def outputs(positions: int, there: Callable[[Tensor], Tensor], **options: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(2, positions, 7, generator=generator, dtype=torch.float64).log_softmax(2)
    lengths = [positions, positions - 1]
    return list(dag_decode(there(log_probs), there(links_of(lengths)), there(torch.tensor(lengths)), **options))


PATHS: dict[str, tuple[Callable[..., list], dict[str, Any], int]] = {
    # with how many waits
    "CTC loss": (losses, {"function": linear_ctc_loss}, 0),
    "CTC loss of sequences": (losses, {"function": linear_ctc_loss, "reduction": "none"}, 0),
    "CTC best path": (losses, {"function": linear_ctc_best_path}, 1),
    "CTC n-grams": (losses, {"function": linear_ctc_ngram_loss}, 3),  # and two copies in backward
    "links": (links, {}, 0),
    "DAG loss": (losses, {"function": linear_dag_loss}, 1),
    "DAG loss of sequences": (losses, {"function": linear_dag_loss, "reduction": "none"}, 1),
    "DAG best path": (losses, {"function": dag_best_path}, 1),
    "DAG n-grams": (losses, {"function": linear_dag_ngram_loss}, None),  # a few for each sequence
}
WAITS_OF_STRATEGIES = {"viterbi": 1, "joint_viterbi": 1, "beam": 1}
for strategy in STRATEGIES:
    PATHS[f"DAG {strategy}"] = (outputs, {"strategy": strategy}, WAITS_OF_STRATEGIES.get(strategy, 0))


@pytest.mark.parametrize("name", PATHS)
def test_launches_do_not_grow_with_positions(name, monkeypatch):
    run, options, number = PATHS[name]
    launches = []
    for positions in (FEW, 2 * FEW):
        expected = run(positions=positions, there=lambda tensor: tensor, **options)
        with elsewhere(monkeypatch) as waits:
            got = run(positions=positions, there=Far, **options)
            for ours, known in zip(got, expected, strict=True):
                torch.testing.assert_close(ours.held, known, rtol=1e-9, atol=1e-12)
        if number is not None:
            assert len(waits) == number, waits
        launches.append(waits.launches)
    more = OF_A_ROUND if name in ("DAG greedy", "DAG lookahead", "DAG sample") else 0
    assert more - PICKED <= launches[1] - launches[0] <= more, launches


def test_a_loop_over_positions_would_be_counted(monkeypatch):
    launches = []
    for positions in (FEW, 2 * FEW):
        with elsewhere(monkeypatch) as waits:
            emissions = Far(torch.zeros(positions, 2, 4))
            recursion.best_states(emissions, Far(torch.ones(2, 3, dtype=torch.bool)), Far(torch.tensor([3, 2])))
        launches.append(waits.launches)
    assert launches[1] - launches[0] == 9 * FEW


GENERATION: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "greedy, scores": ({}, {"return_scores": True}),
    "refined": (TOKENS, {"refinement": 2}),
    "beam": ({}, {"beam_size": 3, "min_length": 2, "no_repeat_ngram_size": 2, "bad_words_ids": [[1, 3], [4]]}),
    "limited": ({}, {"max_length": 3}),
    "one token a slot": (MODELS["one token a slot"], {"length_beam": 2}),
    **{f"graph, {strategy}": (GRAPH, {"strategy": strategy, "return_scores": True}) for strategy in STRATEGIES},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATION)
def test_launches_of_generation_do_not_grow_with_sources(name, monkeypatch):
    settings, options = GENERATION[name]
    model = model_of({**settings, **WIDE})
    launches = []
    for lengths in ([12, 7], [24, 14]):
        inputs = tiny.padded_form(tiny.source_ids(lengths))
        expected = generate(model, **inputs, **options)
        with elsewhere(monkeypatch) as waits:
            there = {key: value.to(ELSEWHERE, non_blocking=True) for key, value in inputs.items()}
            got = torch.no_grad()(generate.__wrapped__)(moved(model), **there, **options)
            got, expected = (each if isinstance(each, Tensor) else each.sequences for each in (got, expected))
            assert torch.equal(got.held, expected)
        launches.append(waits.launches)
    is_walk = name in ("graph, greedy", "graph, lookahead", "graph, sample")
    assert launches[1] - launches[0] == is_walk * OF_A_ROUND, launches


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ctc, glancing", "graph"])
def test_launches_of_a_training_step_do_not_grow_with_texts(name, monkeypatch, tmp_path):
    model = model_of({**(GRAPH if name == "graph" else MODELS[name]), **WIDE})
    launches = []
    for times in (1, 3):
        with elsewhere(monkeypatch) as waits:
            glancing = (lambda step: 0.5) if "glancing" in name else None
            take_step(moved(model), ELSEWHERE, tmp_path, glancing=glancing, times=times)
        launches.append(waits.launches)
    assert launches[1] - launches[0] == pytest.approx(0, abs=2 * PICKED), launches
