"""One graph of slots of a real output: what its slots would write, and which paths lead through them.

Shapes: L slots, V tokens of the vocabulary.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch

from bnb_ds.ctc.greedy import logits_in_chunks
from bnb_ds.dag.ngrams import passing
from bnb_ds.dag.strategies import DagOptions, best_slots, emitted
from bnb_ds.decoding.decode import inputs_of_rows
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.generate.open_model import load_exported
from bnb_ds.generate.reading import SourceReader

NUM_CANDIDATES = 3


@dataclass(frozen=True)
class Vertex:
    """One slot.

    Attributes:
        slot: its number, from 0.
        passing: the probability that a path passes it.
        tokens: its most probable tokens and their probabilities, best first.
    """

    slot: int
    passing: float
    tokens: list[tuple[str, float]]


@dataclass(frozen=True)
class GraphView:
    """The part of a graph that many paths use.

    Attributes:
        num_slots: slots of the whole graph.
        vertices: slots that are shown, in their order.
        links: pairs of shown slots, and the probability that a path takes this link.
        path: the slots of the output, in their order; all are shown.
        text: the output.
    """

    num_slots: int
    vertices: list[Vertex]
    links: dict[tuple[int, int], float]
    path: list[int]
    text: str


def view_graph(directory: Path, text: str, options: DagOptions, *, least: float = 0.05) -> GraphView:
    """The graph that a model makes of a text.

    Args:
        directory: an exported model.
        text: the source.
        options: how the output is read off; any strategy but ``beam``.
        least: slots and links are shown that a path takes with at least this probability, and those of the output.

    Raises:
        CheckpointError: there is no model in the directory, or it is damaged.
        ConfigError: the model's slots are no graph.
        DataError: the text has no tokens, or is not what the model's task reads.
    """
    reader = SourceReader.load(directory)
    model = load_exported(directory, torch.device("cpu"))
    kind = model.config.target_kind
    if kind != "dag":
        raise ConfigError(f"{directory}: its target is {kind}; give a model that was trained with target dag")
    (source,), _ = reader.encode([text])
    if not source:
        raise DataError("--text: has no tokens; give a text with words")
    with torch.inference_mode():
        encoded = model.model.encode(inputs_of_rows(model, [source]))
        states = model.states(encoded, model.model.open(encoded))
        assert states.links is not None
        chunks = [
            logits_CV.log_softmax(1).topk(NUM_CANDIDATES)
            for _, logits_CV in logits_in_chunks(states.hidden, states.weight, states.bias)
        ]
        values_LC, ids_LC = (torch.cat([chunk[place] for chunk in chunks]) for place in (0, 1))
        path_BL, length_B = best_slots(values_LC[None, :, 0], states.links, states.layout.lengths, options)
        links_LL = states.links[0].double().exp()
        passing_L = passing(links_LL)
    path = path_BL[0, : int(length_B)].tolist()
    rules = reader.codec.target_rules(model.config.decoder.vocab_size)
    on_path = set(path)
    shown = [slot for slot, value in enumerate(passing_L.tolist()) if value >= least or slot in on_path]
    vertices = [
        Vertex(
            slot,
            passing_L[slot].item(),
            [
                (rules.name(token), value.exp().item())
                for token, value in zip(ids_LC[slot].tolist(), values_LC[slot], strict=True)
            ],
        )
        for slot in shown
    ]
    taken_LL = passing_L[:, None] * links_LL
    steps = steps_of(path)
    links = {
        (i, j): taken_LL[i, j].item()
        for place, i in enumerate(shown)
        for j in shown[place + 1 :]
        if taken_LL[i, j] >= least or (i, j) in steps
    }
    ids_BL, written_B = emitted(ids_LC[:, 0][path_BL], length_B, options.merge_duplicates)
    (written,) = reader.codec.decode([ids_BL[0, : int(written_B)].tolist()])
    return GraphView(len(passing_L), vertices, links, path, written)


def steps_of(path: list[int]) -> set[tuple[int, int]]:
    """The links of a path."""
    return set(itertools.pairwise(path))
