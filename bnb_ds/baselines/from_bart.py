"""Starts the non-autoregressive baselines from a BART, such as ELMER's public checkpoint.

BART's layers are BERT's, under other names: attention, cross-attention and feed-forward layers, each with its LayerNorm
behind the sum. It has no token types, and no dense layer in front of the output matrix. Its positions begin with row 2.
A fine-tuned ELMER also has one layer ``concat_head`` that joins states and predicted words behind all decoder layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, PreTrainedConfig

from bnb_ds.common.hub import checkpoint_errors
from bnb_ds.errors import CheckpointError, ConfigError
from bnb_ds.model.students.layer_choice import layers_from
from bnb_ds.modeling import BnbForConditionalGeneration

_FIRST_POSITION = 2
#: names in BERT's layers -> in BART's
_PARTS = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
}
_CROSS_PARTS = {
    "crossattention.self.query": "encoder_attn.q_proj",
    "crossattention.self.key": "encoder_attn.k_proj",
    "crossattention.self.value": "encoder_attn.v_proj",
    "crossattention.output.dense": "encoder_attn.out_proj",
    "crossattention.output.LayerNorm": "encoder_attn_layer_norm",
}
_CONCAT = "concat_head.weight"
#: of a BART that was trained for classes or answers; nothing here has such a head
_OTHER_HEADS = ("classification_head.", "qa_outputs.")


class _Elmer(BartForConditionalGeneration):
    """BART with the layer of a fine-tuned ELMER."""

    def __init__(self, config: BartConfig) -> None:
        super().__init__(config)
        self.concat_head = nn.Linear(2 * config.d_model, config.d_model, bias=False)


def is_bart(checkpoint: str | None) -> bool:
    """Whether a Hugging Face directory or hub name holds a BART.

    Raises:
        CheckpointError: it has no readable configuration.
    """
    if checkpoint is None:
        return False
    with checkpoint_errors(checkpoint, "model"):
        return PreTrainedConfig.get_config_dict(checkpoint)[0].get("model_type") == "bart"


def halves_of_bart(checkpoint: str, max_positions: int | None = None, **more: Any) -> dict[str, BertConfig]:
    """The BERT configurations ``encoder`` and ``decoder`` of the layers of a BART. It reads no weights.

    Args:
        checkpoint: Hugging Face directory or hub name.
        max_positions: positions to use; None: all.
        more: further fields of both, such as ``hidden_dropout_prob``.

    Raises:
        CheckpointError: it cannot be read.
        ConfigError: it has fewer positions, or scales its embeddings.
    """
    with checkpoint_errors(checkpoint, "BART"):
        bart = BartConfig.from_pretrained(checkpoint)
    if bart.scale_embedding:
        raise ConfigError(f"{checkpoint}: multiplies its embeddings (scale_embedding true); give a BART that does not")
    if max_positions is not None and not 1 <= max_positions <= bart.max_position_embeddings:
        raise ConfigError(
            f"model.max_position_embeddings {max_positions}: {checkpoint} has {bart.max_position_embeddings} positions;"
            " give fewer"
        )
    return {
        half: BertConfig(
            vocab_size=bart.vocab_size,
            hidden_size=bart.d_model,
            num_hidden_layers=getattr(bart, f"{half}_layers"),
            num_attention_heads=getattr(bart, f"{half}_attention_heads"),
            intermediate_size=getattr(bart, f"{half}_ffn_dim"),
            max_position_embeddings=max_positions or bart.max_position_embeddings,
            hidden_act=bart.activation_function,
            initializer_range=bart.init_std,
            layer_norm_eps=1e-5,  # that of torch, which BART uses
            type_vocab_size=1,
            pad_token_id=bart.pad_token_id,
            **more,
        )
        for half in ("encoder", "decoder")
    }


def load_bart(model: BnbForConditionalGeneration, checkpoint: str) -> None:
    """Give a model made with `halves_of_bart` and without ``head_transform`` the weights of that BART.

    What BART lacks stays new: latents, length classification, and without a ``concat_head`` the feedback of layers.

    Raises:
        CheckpointError: the checkpoint cannot be read, lacks weights, or has some that are unknown.
    """
    with checkpoint_errors(checkpoint, "BART"):
        bart, info = _Elmer.from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True)
    missing = sorted(set(info["missing_keys"]) - {_CONCAT})
    if missing:
        raise CheckpointError(f"{checkpoint}: lacks weights such as {missing[0]}; name a whole model")
    # A layer under another name would silently begin with new weights.
    unknown = sorted(name for name in info["unexpected_keys"] if not name.startswith(_OTHER_HEADS))
    if unknown:
        named = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        raise CheckpointError(
            f"{checkpoint}: has weights that no BART or ELMER has: {named}; name ELMER's layer {_CONCAT}, or remove"
            " them"
        )
    theirs = bart.state_dict()
    positions = model.config.encoder.max_position_embeddings
    for half in ("encoder", "decoder"):
        module = getattr(model.model, half)
        layers = layers_from(model.config, half)
        weights = _half(theirs, f"model.{half}.", layers, positions, has_cross=half == "decoder")
        _, unknown = module.load_state_dict(weights, strict=False)
        assert not unknown, f"the {half} has no place for {unknown}"
        nn.init.zeros_(module.embeddings.token_type_embeddings.weight)
    with torch.no_grad():
        model.lm_head.bias.copy_(theirs["final_logits_bias"][0])
        if _CONCAT not in info["missing_keys"]:
            for feedback in model.model.decoder.feedback or ():
                feedback.weight.copy_(theirs[_CONCAT])


def _half(
    theirs: dict[str, Tensor], prefix: str, layers: list[int], positions: int, *, has_cross: bool
) -> dict[str, Tensor]:
    parts = {**_PARTS, **(_CROSS_PARTS if has_cross else {})}
    weights = {
        f"layer.{place}.{ours}.{leaf}": theirs[f"{prefix}layers.{layer}.{name}.{leaf}"]
        for place, layer in enumerate(layers)
        for ours, name in parts.items()
        for leaf in ("weight", "bias")
    }
    embeddings = {
        "word_embeddings.weight": theirs["model.shared.weight"],
        "position_embeddings.weight": theirs[f"{prefix}embed_positions.weight"][_FIRST_POSITION:][:positions],
        "LayerNorm.weight": theirs[f"{prefix}layernorm_embedding.weight"],
        "LayerNorm.bias": theirs[f"{prefix}layernorm_embedding.bias"],
    }
    return {**weights, **{f"embeddings.{name}": weight for name, weight in embeddings.items()}}
