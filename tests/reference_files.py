"""Makes directories like those of the reference implementation, from our own small models."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

from bnb_ds.model.from_reference import their_name


def their_weights(model) -> dict[str, torch.Tensor]:
    weights = {their_name(name): weight.clone() for name, weight in model.state_dict().items()}
    for leaf in ("weight", "bias"):
        weights[f"encoder.linear.{leaf}"] = torch.cat([weights[f"encoder.linear.{leaf}"]] * 2)
    return {**weights, "encoder.pooler.dense.bias": torch.zeros(3), "encoder.embeddings.position_ids": torch.zeros(1)}


def save_as_reference(model, directory, weights=None, *, binary=False, **config):
    """A directory as the reference's ``save_pretrained`` writes it."""
    directory.mkdir(exist_ok=True)
    halves = {
        half: {**getattr(model.config, half).to_dict(), "latent_size": model.config.latent_size}
        for half in ("encoder", "decoder")
    }
    values = {"model_type": "encoder-decoder", "pad_token_id": 0, "dropout_prob": 0.1, **halves, **config}
    (directory / "config.json").write_text(json.dumps(values))
    weights = their_weights(model) if weights is None else weights
    if binary:
        torch.save(weights, directory / "pytorch_model.bin")
    else:
        save_file(weights, directory / "model.safetensors")
