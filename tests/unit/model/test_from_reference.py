"""Our model reproduces everything recorded from the reference implementation, and mutated models do not.

The recordings are in the directory beside the checkout. Their README describes each tensor. Without them these tests
are skipped.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.activations import ACT2FN

from bnb_ds.ctc.greedy import collapse
from bnb_ds.model.from_reference import their_name
from bnb_ds.modeling import BnbForConditionalGeneration

REFERENCE = Path(__file__).resolve().parents[3].parent / "shared" / "reference"
pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="no ../shared/reference beside this checkout")

BETA = 0.1
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


@pytest.fixture(scope="module")
def inputs():
    return load_file(REFERENCE / "inputs.safetensors")


@pytest.fixture(scope="module")
def expected():
    return load_file(REFERENCE / "expected.safetensors")


@pytest.fixture(scope="module")
def recorded():
    return json.loads((REFERENCE / "expected.json").read_text())


def source(inputs):
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids")}


def labels(inputs):
    return inputs["decoder_input_ids"].masked_fill(inputs["decoder_attention_mask"] == 0, -100)


def largest_difference(model, inputs, expected) -> float:
    with torch.no_grad():
        return (model(**source(inputs)).logits - expected["logits_f64"]).abs().max().item()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_logits_latents_and_choices(inputs, expected, dtype):
    model = BnbForConditionalGeneration.from_reference(REFERENCE).to(dtype)
    assert largest_difference(model, inputs, expected) <= TOLERANCE[dtype]
    output = model(**source(inputs))
    assert output.logits.shape == expected["logits"].shape
    assert torch.equal(output.logits.argmax(-1), expected["argmax_ids"])
    # Recorded in float32 only.
    for ours, theirs in ((output.encoder_last_hidden_state, "encoder_last_hidden_state"), (output.latent, "z")):
        torch.testing.assert_close(ours.float(), expected[theirs], rtol=0, atol=1e-5)


def test_decoder_embeddings(inputs, expected):
    model = BnbForConditionalGeneration.from_reference(REFERENCE)
    seen = []
    model.model.decoder.embeddings.register_forward_hook(lambda module, args, output: seen.append(output))
    model(**source(inputs))
    torch.testing.assert_close(
        seen[0], expected["decoder_embedding_output"].flatten(0, 1), rtol=0, atol=1e-5, check_stride=False
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_losses_and_gradients(inputs, expected, recorded, dtype):
    model = BnbForConditionalGeneration.from_reference(REFERENCE, kl_weight=BETA).to(dtype)
    output = model(**source(inputs), labels=labels(inputs))
    exact = {"abs": TOLERANCE[dtype], "rel": 0}
    assert output.kl.item() == pytest.approx(expected["loss_kl_uniform_f64"].item(), **exact)
    total = expected["loss_ctc_f64"].item() + BETA * expected["loss_kl_uniform_f64"].item()
    assert output.loss.item() == pytest.approx(total, **exact)
    assert output.loss.item() == pytest.approx(expected["loss_total_beta0.1"].item(), rel=1e-5)
    output.loss.backward()
    norms = {their_name(name): parameter.grad.norm().item() for name, parameter in model.named_parameters()}
    for name, norm in norms.items():
        # The gradients of the key biases are zero up to rounding.
        assert norm == pytest.approx(recorded["grad_norms"][name], rel=1e-4, abs=1e-7), name
    assert set(recorded["grad_norms"]) == set(norms)
    latent_rows = expected["grad.encoder.linear.weight"][: model.config.latent_size]
    for ours, theirs in (
        (model.model.latent, latent_rows),
        (model.model.decoder.embeddings.latent_projection, expected["grad.decoder.linear.weight"]),
    ):
        torch.testing.assert_close(ours.weight.grad.float(), theirs, rtol=0, atol=1e-6)


def test_losses_of_single_sequences(inputs, expected):
    model = BnbForConditionalGeneration.from_reference(REFERENCE).double()
    for row, nll in enumerate(expected["ctc_nll_per_sample"].tolist()):
        one = {name: tensor[row][None] for name, tensor in source(inputs).items()}
        target = labels(inputs)[row][None]
        num_tokens = int((target != -100).sum())
        assert model(**one, labels=target).loss.item() * num_tokens == pytest.approx(nll, rel=1e-5)


def test_padding_changes_the_output_as_it_does_there(inputs, expected):
    model = BnbForConditionalGeneration.from_reference(REFERENCE)
    narrower = {name: tensor[1:, :-8] for name, tensor in source(inputs).items()}
    torch.testing.assert_close(
        model(**narrower).logits, expected["logits_rows1plus_8_fewer_pad_columns"], rtol=0, atol=1e-5
    )


def test_generated_ids(inputs, recorded):
    model = BnbForConditionalGeneration.from_reference(REFERENCE)
    rows = model.generate(**source(inputs)).tolist()
    assert [[token for token in row if token] for row in rows] == recorded["greedy"]["textbook_ctc"]


def test_collapse_of_the_recorded_paths(recorded):
    for vector in recorded["postprocess_vectors"]:
        path = torch.tensor([vector["ids"]])
        ids, lengths = collapse(path, torch.tensor([path.shape[1]]))
        assert ids[0, : lengths[0]].tolist() == vector["textbook_ctc"]


def test_both_weight_files_hold_the_same_model(inputs, tmp_path):
    (tmp_path / "config.json").write_bytes((REFERENCE / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").symlink_to(REFERENCE / "pytorch_model.bin")
    one, other = (BnbForConditionalGeneration.from_reference(path) for path in (REFERENCE, tmp_path))
    assert all(torch.equal(weight, other.state_dict()[name]) for name, weight in one.state_dict().items())


def gelu_by_tanh(model):
    for layer in (*model.model.encoder.layer, *model.model.decoder.layer):
        layer.intermediate.intermediate_act_fn = ACT2FN["gelu_new"]


def swap_latent_halves(model):
    weights = load_file(REFERENCE / "model.safetensors")
    size = model.config.latent_size
    model.model.latent.weight.data = weights["encoder.linear.weight"][size:].to(model.dtype)
    model.model.latent.bias.data = weights["encoder.linear.bias"][size:].to(model.dtype)


def coarse_layer_norm(model):
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5


def drop_token_types(model):
    model.model.decoder.embeddings.token_type_embeddings.weight.data.zero_()


def causal_mask():
    """Slot i sees slots up to i."""
    attend = torch.nn.functional.scaled_dot_product_attention

    def causal(query, key, value, attn_mask=None, **options):
        is_decoder = attn_mask is None and query.shape[2] == key.shape[2]
        return attend(query, key, value, attn_mask=attn_mask, is_causal=is_decoder, **options)

    return causal


def mask_decoder_by_source(inputs):
    """Mask slots of [PAD] positions as keys of the decoder's self-attention too."""
    attend = torch.nn.functional.scaled_dot_product_attention
    real = (inputs["attention_mask"] != 0)[:, None, None, :]
    return lambda *args, attn_mask=None, **options: attend(*args, attn_mask=real, **options)


@pytest.mark.parametrize("mutate", [gelu_by_tanh, swap_latent_halves, coarse_layer_norm, drop_token_types])
def test_a_mutated_model_is_seen(inputs, expected, mutate):
    model = BnbForConditionalGeneration.from_reference(REFERENCE).double()
    mutate(model)
    assert largest_difference(model, inputs, expected) > 1e-5


def test_a_causal_decoder_is_seen(inputs, expected, monkeypatch):
    monkeypatch.setattr("bnb_ds.model.varlen.operators.scaled_dot_product_attention", causal_mask())
    model = BnbForConditionalGeneration.from_reference(REFERENCE).double()
    assert largest_difference(model, inputs, expected) > 0.1


def test_a_decoder_masked_by_source_padding_is_seen(inputs, expected, monkeypatch):
    monkeypatch.setattr("bnb_ds.model.varlen.operators.scaled_dot_product_attention", mask_decoder_by_source(inputs))
    model = BnbForConditionalGeneration.from_reference(REFERENCE).double()
    assert largest_difference(model, inputs, expected) > 0.1


@pytest.mark.parametrize("fields", [{"deep_supervision": True}, {"decoder_tokens": True, "mask_token_id": 4}], ids=str)
def test_parts_that_the_reference_lacks_begin_without_effect(inputs, fields):
    plain, more = (BnbForConditionalGeneration.from_reference(REFERENCE, **given) for given in ({}, fields))
    with torch.no_grad():
        assert torch.equal(more(**source(inputs)).logits, plain(**source(inputs)).logits)


def test_an_imported_model_may_become_a_graph(inputs):
    fields = {"target": "dag", "decoder_length": "source", "decoder_tokens": True, "mask_token_id": 4}
    model = BnbForConditionalGeneration.from_reference(REFERENCE, **fields)
    plain = BnbForConditionalGeneration.from_reference(REFERENCE, decoder_length="source")
    with torch.no_grad():
        assert torch.equal(model(**source(inputs)).logits, plain(**source(inputs)).logits)
    assert model(**source(inputs), labels=labels(inputs)).loss.isfinite()


@pytest.mark.parametrize("policy", ["source", "predicted"])
def test_an_imported_model_goes_on_with_another_policy(inputs, tmp_path, policy):
    """The model is saved, loaded with another decoder length, and trained. The loss falls."""
    BnbForConditionalGeneration.from_reference(REFERENCE).save_pretrained(tmp_path)
    model = BnbForConditionalGeneration.from_pretrained(
        tmp_path, decoder_length=policy, decoder_length_ratio=1.0, loss_reduction="token"
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = model(**source(inputs), labels=labels(inputs)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
