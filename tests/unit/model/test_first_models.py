"""Models that an earlier version saved compute what they computed then; new settings begin without effect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration

MODELS = Path(__file__).parents[2] / "golden" / "first_models"


def outputs_of(directory: Path, config: BnbConfig | None = None):
    expected = json.loads((directory / "outputs.json").read_text())
    settings = {} if config is None else {"config": config}
    model = BnbForConditionalGeneration.from_pretrained(directory, dtype=torch.float64, **settings).eval()
    ids = torch.tensor(expected["input_ids"])
    labels = torch.tensor(expected["labels"])
    mask = (ids != 0).long()
    output = model(ids, mask, labels=labels, return_logits=True, return_best=True)
    return expected, output, model.generate(ids, mask, return_scores=True)


@pytest.mark.parametrize("name", ["ctc", "token"])
def test_an_old_model_computes_what_it_did(name):
    expected, output, generated = outputs_of(MODELS / name)
    assert output.loss_sum.item() == pytest.approx(expected["loss_sum"], rel=1e-12)
    assert output.loss_count.item() == expected["loss_count"]
    assert output.kl.item() == pytest.approx(expected["kl"], rel=1e-12)
    torch.testing.assert_close(
        output.logits, torch.tensor(expected["logits"], dtype=torch.float64), rtol=1e-10, atol=1e-12
    )
    assert output.best.tolist() == expected["best"]
    assert generated.sequences.tolist() == expected["sequences"]
    assert generated.lengths.tolist() == expected["lengths"]
    assert generated.scores.tolist() == pytest.approx(expected["scores"], rel=1e-12)


@pytest.mark.parametrize("name", ["ctc", "token"])
def test_slots_that_hold_tokens_begin_with_the_same_bits(name):
    directory = MODELS / name
    config = BnbConfig.from_pretrained(directory)
    config.decoder_tokens, config.mask_token_id = True, 4
    _, before, generated_before = outputs_of(directory)
    _, after, generated_after = outputs_of(directory, config)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.loss_sum, after.loss_sum)
    assert torch.equal(generated_before.sequences, generated_after.sequences)
    assert torch.equal(generated_before.scores, generated_after.scores)


def test_the_gate_of_a_new_model_is_open_and_a_saved_gate_is_kept(tmp_path):
    config = BnbConfig.from_pretrained(MODELS / "ctc")
    config.decoder_tokens, config.mask_token_id = True, 4
    model = BnbForConditionalGeneration(config)
    gate = model.model.decoder.embeddings.token_gate
    assert gate.item() == 1.0
    with torch.no_grad():
        gate.fill_(0.625)
    model.save_pretrained(tmp_path)
    loaded = BnbForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.model.decoder.embeddings.token_gate.item() == 0.625
