"""A source with one of two token-disjoint targets, drawn at random: independent slots mix them, a graph does not.

The source is five letters. Its target is these letters in one alphabet or in the other one.
"""

from __future__ import annotations

import math

import pytest
import torch

from bnb_ds.common.packing import PackedLayout
from bnb_ds.decoding.decode import greedy_rows
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration

pytestmark = pytest.mark.slow

LETTERS, LENGTH, BATCH = 8, 5, 32
FIRST = 5  # ids below it are special
SIZE = {
    "vocab_size": FIRST + 3 * LETTERS,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def samples(count, generator):
    """int64 [B, 5] sources, and int64 [B, 7] targets in one of the two alphabets."""
    letters = torch.randint(LETTERS, (count, LENGTH), generator=generator)
    alphabet = torch.randint(2, (count, 1), generator=generator)
    target = FIRST + LETTERS * (1 + alphabet) + letters
    ends = torch.ones(count, 1, dtype=torch.int64)
    return FIRST + letters, torch.cat((2 * ends, target, 3 * ends), 1)


def is_pure(tokens) -> bool:
    """Whether an output has all letters, and all of one alphabet."""
    alphabets = {(token - FIRST) // LETTERS for token in tokens if token >= FIRST}
    return len(alphabets) == 1 and len([token for token in tokens if token >= FIRST]) == LENGTH


def train(steps, **fields):
    torch.manual_seed(0)
    ids = {"bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4, "decoder_positions": "shared", "latent_size": 16}
    model = BnbForConditionalGeneration(BnbConfig(SIZE, SIZE, decoder_tokens=True, **ids, **fields)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min((step + 1) / 30, (steps - step) / (steps / 2), 1.0)
        source, target = samples(BATCH, generator)
        slots = 4 * LENGTH if fields.get("decoder_length") != "predicted" else LENGTH + 2
        draws = torch.rand(BATCH * slots, generator=generator)
        ratio = 0.5 * (1 - step / steps)
        output = model(source, labels=target, glance_ratio=ratio, glance_draws=draws)
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@torch.no_grad()
def drawn_outputs(model, source):
    """Outputs of independent slots, one token drawn for each."""
    output = model(source)
    generator = torch.Generator().manual_seed(2)
    probabilities = output.logits.flatten(0, 1).softmax(1)
    tokens = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    lengths = output.decoder_lengths
    layout = PackedLayout.from_lengths(lengths, num_tokens=int(lengths.sum()), max_seqlen=int(lengths.max()))
    drawn = layout.unpad(tokens.unflatten(0, output.logits.shape[:2]))
    return [row.tolist() for row in greedy_rows(drawn, lengths, model.config)]


def test_a_graph_writes_one_target_and_independent_slots_a_mixture():
    source, target = samples(400, torch.Generator().manual_seed(9))
    graph = train(500, target="dag", decoder_length_ratio=4.0)
    generated = graph.generate(source, return_scores=True)
    rows = [row[:length] for row, length in zip(generated.sequences.tolist(), generated.lengths.tolist(), strict=True)]
    pure = sum(map(is_pure, rows)) / len(rows)
    with torch.no_grad():
        nats = graph(source, labels=target).loss_sum.item() / len(source)
    print("dag", pure, nats)
    assert pure > 0.95
    assert nats < 3 * math.log(2)  # the choice itself costs log 2; slots that choose for themselves pay 5 log 2

    for name, fields in {"ctc": {"decoder_length_ratio": 4.0}, "token": {"decoder_length": "predicted"}}.items():
        model = train(300, **fields)
        rows = drawn_outputs(model, source)
        mixed = sum(map(is_pure, rows)) / len(rows)
        print(name, mixed)
        assert mixed < 0.5
