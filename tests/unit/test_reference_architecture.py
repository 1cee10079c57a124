"""The architecture against tensors recorded from the reference implementation (skipped where they are absent).

The reference feeds [PAD] positions to its decoder, which this model never does; so logits are compared on the one row
without padding, encoder states and latents on the real tokens of all rows.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bnb_ds.ctc import collapse
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration

REFERENCE = Path(__file__).resolve().parents[2].parent / "shared" / "reference"
pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="no ../shared/reference beside this checkout")


def our_name(key: str) -> str:
    renames = [
        ("decoder.cls.predictions.", "lm_head."),
        ("decoder.linear.", "model.decoder.embeddings.latent_projection."),
        ("decoder.bert.encoder.layer.", "model.decoder.layer."),
        ("decoder.bert.embeddings.", "model.decoder.embeddings."),
        ("encoder.linear.", "model.latent."),
        ("encoder.encoder.layer.", "model.encoder.layer."),
        ("encoder.embeddings.", "model.encoder.embeddings."),
    ]
    for prefix, ours in renames:
        if key.startswith(prefix):
            return ours + key.removeprefix(prefix)
    raise KeyError(key)


@pytest.fixture(scope="module")
def model():
    settings = json.loads((REFERENCE / "config.json").read_text())
    names = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "type_vocab_size",
        "layer_norm_eps",
        "hidden_act",
    )
    halves = {half: {name: settings[half][name] for name in names} for half in ("encoder", "decoder")}
    latent_size = settings["encoder"]["latent_size"]
    network = BnbForConditionalGeneration(BnbConfig(**halves, latent_size=latent_size, decoder_length_ratio=1.0))
    weights = {}
    for key, weight in load_file(REFERENCE / "model.safetensors").items():
        if key.startswith("encoder.linear."):
            weight = weight[:latent_size]  # the other half is the log variance of a VAE that is never trained
        if "pooler" not in key and "position_ids" not in key:
            weights[our_name(key)] = weight
    network.load_state_dict(weights)
    return network.double().eval()


@pytest.fixture(scope="module")
def inputs():
    return load_file(REFERENCE / "inputs.safetensors")


@pytest.fixture(scope="module")
def expected():
    return load_file(REFERENCE / "expected.safetensors")


def test_encoder_states_and_latents(model, inputs, expected):
    output = model.model(inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"])
    real = inputs["attention_mask"].bool()
    for ours, theirs in ((output.encoder_last_hidden_state, "encoder_last_hidden_state"), (output.latent, "z")):
        torch.testing.assert_close(ours[real].float(), expected[theirs][real], rtol=0, atol=1e-5)


def test_logits_and_loss_of_the_row_without_padding(model, inputs, expected):
    unpadded = int(inputs["attention_mask"].all(1).nonzero()[0])
    row = {name: inputs[name][unpadded][None] for name in ("input_ids", "token_type_ids")}
    length = int(inputs["decoder_attention_mask"][unpadded].sum())
    labels = inputs["decoder_input_ids"][unpadded, :length][None]
    output = model(**row, labels=labels, return_logits=True)
    torch.testing.assert_close(output.logits[0], expected["logits_f64"][unpadded], rtol=0, atol=1e-9)
    assert torch.equal(output.logits[0].argmax(-1), expected["argmax_ids"][unpadded])
    # Recorded in float32.
    assert output.loss_sum.item() == pytest.approx(expected["ctc_nll_per_sample"][unpadded].item(), rel=1e-5)


def test_collapse_of_the_recorded_paths():
    for vector in json.loads((REFERENCE / "expected.json").read_text())["postprocess_vectors"]:
        path = torch.tensor([vector["ids"]])
        ids, lengths = collapse(path, torch.tensor([path.shape[1]]))
        assert ids[0, : lengths[0]].tolist() == vector["textbook_ctc"]
