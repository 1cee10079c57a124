"""The beam search in a graph at its edges: impossible tokens, and rules that shut out the likely ways."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bnb_ds.dag.beam_search import BeamOptions, search


def test_a_text_of_probability_0_is_not_in_the_way():
    """log(0 + 0) among the ways into a slot."""
    tokens, log_probs = np.array([[0], [1], [0]]), np.array([[0.0], [-math.inf], [0.0]])
    links = np.array([[-math.inf, -0.5, -1.0], [-math.inf, -math.inf, 0.0], [-math.inf] * 3])
    found = search(tokens, log_probs, links, BeamOptions(), merge_duplicates=False)
    assert [(one.tokens, one.log_prob) for one in found] == [((0, 0), -1.0)]


@pytest.mark.parametrize("rules", [{"banned_sequences": ((0, 1),)}, {"no_repeat_ngram_size": 1}])
def test_where_rules_shut_out_the_most_probable_ways_the_next_ones_are_followed(rules):
    """Five slots would write 1 or 0 first; the sixth and last but one, which hardly a path passes, writes 2."""
    shut_out = 1 if "banned_sequences" in rules else 0
    tokens = np.array([[0], *[[shut_out]] * 5, [2], [3]])
    links = np.full((8, 8), -math.inf)
    links[0, 1:7] = np.log([0.19] * 5 + [0.05])
    links[1:7, 7] = 0.0
    options = BeamOptions(candidates=5, **rules)
    found = search(tokens, np.zeros((8, 1)), links, options, merge_duplicates=False)
    assert [one.tokens for one in found] == [(0, 2, 3)]
    assert found[0].log_prob == pytest.approx(math.log(0.05))
