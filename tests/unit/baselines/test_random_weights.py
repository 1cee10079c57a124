"""Random weights of the baselines have the standard deviation that the recipe gives."""

from __future__ import annotations

import pytest

from bnb_ds.baselines.settings import Bert2bertSection, TransformerSection
from bnb_ds.systems.baselines import Bert2bert, Transformer
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.text_lengths import Lengths

WIDE = {
    "hidden_size": 96,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 24,
    "initializer_range": 0.1,
}
LENGTHS = Lengths(20, 8)


@pytest.mark.parametrize(
    ("kind", "section"),
    [
        (Bert2bert, Bert2bertSection(kind="bert2bert", size=WIDE)),
        (Transformer, TransformerSection(kind="transformer", size=WIDE)),
    ],
)
def test_random_weights_have_the_recipe_s_standard_deviation(kind, section, small_tokenizer):
    model = kind(get_task("translation"), LENGTHS, Codec(small_tokenizer, small_tokenizer), section).build()
    queries = [weight for key, weight in model.named_parameters() if key.endswith(("query.weight", "q_proj.weight"))]
    assert len(queries) == 4  # two layers, and one with cross-attention
    for weight in queries:
        assert 0.095 < weight.std().item() < 0.105
