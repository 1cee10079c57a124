"""Which settings of a model are in range, and which go together."""

from __future__ import annotations

import math
from typing import Any

from bnb_ds.errors import ConfigError, require_choice, require_range
from bnb_ds.model.backbones.entries import backbone_of

DECODER_LENGTH_POLICIES = ("source", "padded", "predicted")
DECODER_POSITIONS = ("absolute", "shared")
TARGETS = ("ctc", "token", "dag")
LOSS_REDUCTIONS = ("token", "sample")
SLOT_TOKENS = ("mask", "source", "inserted")
REFINED_TOKENS = ("unsure", "all")
DECODING = ("length_beam", "refinement", "exit_entropy", "blank_penalty")


def check_settings(config: Any) -> None:
    """Raise ConfigError for a value of a `bnb_ds.model.configuration.BnbConfig` out of range, or that does not fit."""
    _check_choices(config)
    require_range("latent_size", config.latent_size, minimum=1)
    require_range("latent_dropout", config.latent_dropout, minimum=0.0, below=1.0)
    require_range("blank_token_id", config.blank_token_id, minimum=0, below=config.decoder.vocab_size)
    require_range("decoder_length_min", config.decoder_length_min, minimum=1)
    if not 0 < config.decoder_length_ratio < math.inf:
        raise ConfigError(f"decoder_length_ratio is {config.decoder_length_ratio}: give a number above 0")
    if isinstance(config.decoder_length_offset, bool) or not isinstance(config.decoder_length_offset, int):
        raise ConfigError(f"decoder_length_offset is {config.decoder_length_offset!r}: give a whole number of slots")
    if config.decoder_length_max is not None:
        require_range("decoder_length_max", config.decoder_length_max, minimum=config.decoder_length_min)
    require_range("length_difference_max", config.length_difference_max, minimum=config.length_difference_min)
    require_range("length_loss_weight", config.length_loss_weight, minimum=0.0)
    require_range("kl_weight", config.kl_weight, minimum=0.0)
    if config.embedding_range is not None and not 0 < config.embedding_range < math.inf:
        raise ConfigError(f"embedding_range is {config.embedding_range}: give a number above 0, or leave it out")
    decoder = config.decoder
    if not config.head_transform and backbone_of(decoder).word_size(decoder) != decoder.hidden_size:
        raise ConfigError(
            f"head_transform is false, but decoder.embedding_size {decoder.embedding_size} is not its hidden_size "
            f"{decoder.hidden_size}, and nothing else joins the two: set it to true"
        )
    _check_deep_supervision(config)
    if not config.has_decoder:
        _check_encoder_alone(config)
    if config.tie_encoder_decoder:
        _check_shared_sizes(config)
        if config.deep_supervision:
            raise ConfigError(
                "deep_supervision gives the decoder's layers a task that the encoder's layers do not have, but "
                "tie_encoder_decoder makes them one: set one of the two to false"
            )


def _check_deep_supervision(config: Any) -> None:
    require_range("deep_supervision_every", config.deep_supervision_every, minimum=1)
    if config.deep_supervision_every > 1 and not config.predicting_layers:
        way_out = "lower it" if config.deep_supervision else "set deep_supervision to true"
        raise ConfigError(
            f"deep_supervision_every is {config.deep_supervision_every}, and no layer predicts but the last of "
            f"{config.decoder.num_hidden_layers}: {way_out}, or leave it out"
        )


def _check_choices(config: Any) -> None:
    require_choice("decoder_length", config.decoder_length, DECODER_LENGTH_POLICIES)
    require_choice("decoder_positions", config.decoder_positions, DECODER_POSITIONS)
    require_choice("loss_reduction", config.loss_reduction, LOSS_REDUCTIONS)
    require_choice("slot_tokens", config.slot_tokens, SLOT_TOKENS)
    require_choice("refined_tokens", config.refined_tokens, REFINED_TOKENS)
    _check_target(config)
    _check_slot_inputs(config)
    if config.pair_separator_id is not None:
        require_range("pair_separator_id", config.pair_separator_id, minimum=0, below=config.encoder.vocab_size)
        if backbone_of(config.encoder).type_rows(config.encoder) < 2:
            raise ConfigError(
                "pair_separator_id gives the second of two texts another token type, but the encoder has one: leave it "
                "out (pair_types in a recipe)"
            )
    num_types = backbone_of(config.decoder).type_rows(config.decoder)
    if config.decoder_positions == "shared" and num_types < 2:
        raise ConfigError(
            "decoder_positions 'shared' tells slots apart by token type, but decoder.type_vocab_size is "
            f"{num_types}: give 2 or more, or use 'absolute'"
        )


def _check_target(config: Any) -> None:
    if config.target is not None:
        require_choice("target", config.target, TARGETS)
    if config.target_kind == "token" and config.decoder_length != "predicted":
        raise ConfigError(
            f"target 'token' needs as many slots as target tokens, but decoder_length is {config.decoder_length!r}: "
            "set decoder_length to 'predicted'"
        )
    if config.decoder_length == "predicted" and config.loss_reduction != "token":
        raise ConfigError(
            "loss_reduction 'sample' needs decoder_length 'source' or 'padded': with 'predicted' use 'token'"
        )
    if config.decoder_tokens and config.mask_token_id is None:
        raise ConfigError("decoder_tokens needs mask_token_id, the id of [MASK]: give it")
    if config.target_kind == "dag":
        _check_graph(config)
    elif config.segment_blocks:
        raise ConfigError("segment_blocks is for target 'dag': set it to false")


def _check_slot_inputs(config: Any) -> None:
    if config.slot_tokens != "mask" and not config.decoder_tokens:
        raise ConfigError(f"slot_tokens {config.slot_tokens!r} shows tokens to the decoder: set decoder_tokens to true")
    if config.slot_tokens != "mask" and config.encoder.vocab_size != config.decoder.vocab_size:
        raise ConfigError(
            f"slot_tokens {config.slot_tokens!r} needs one vocabulary, but the encoder has "
            f"{config.encoder.vocab_size} tokens and the decoder {config.decoder.vocab_size}: use 'mask'"
        )
    if config.has_decoder and not config.decoder_latent and config.decoder_length != "predicted":
        raise ConfigError(
            f"decoder_latent is false, and with decoder_length {config.decoder_length!r} nothing else reads the "
            "latents: set decoder_length to 'predicted'"
        )
    for name in config.decoding:
        require_choice("decoding: a field", name, DECODING)
    if config.refined_tokens == "all" and config.target_kind != "token":
        raise ConfigError(f"refined_tokens 'all' needs target 'token', not {config.target_kind!r}: use 'unsure'")


def _check_encoder_alone(config: Any) -> None:
    """Without a decoder, the slots are the encoder's input: the source tokens, with mask tokens between them."""
    needed = {
        "decoder_length": "source",
        "decoder_positions": "absolute",
        "slot_tokens": "inserted",
        "decoder_latent": False,
        "decoder_length_max": None,
        "deep_supervision": False,
        "tie_encoder_decoder": False,
    }
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise ConfigError(
                f"{name} is {getattr(config, name)!r}, but a model without a decoder has {value!r}: set it to that, or "
                "set has_decoder to true"
            )
    if config.decoder_length_ratio < 1 or config.decoder_length_offset < 0:
        raise ConfigError(
            f"decoder_length_ratio is {config.decoder_length_ratio} and decoder_length_offset "
            f"{config.decoder_length_offset}: without a decoder, slots hold the source tokens themselves; give at "
            "least 1 and 0"
        )


def _check_graph(config: Any) -> None:
    require_range("link_positions", config.link_positions, minimum=2)
    heads, size = config.link_heads, backbone_of(config.decoder).word_size(config.decoder)
    heads = config.decoder.num_attention_heads if heads is None else heads
    if heads < 1 or size % heads:
        name = "hidden_size" if size == config.decoder.hidden_size else "embedding_size"
        raise ConfigError(f"link_heads is {heads}: give a divisor of decoder.{name}, {size}")
    if config.decoder_length == "padded":
        raise ConfigError("target 'dag' has no padded slots: set decoder_length to 'source' or 'predicted'")
    if config.kl_weight:
        raise ConfigError(f"kl_weight is {config.kl_weight}: target 'dag' has no smoothing term; set it to 0")
    if config.segment_blocks and config.mask_token_id is None:
        raise ConfigError("segment_blocks needs mask_token_id, the id of [MASK]: give it")
    if config.decoder_tokens and None in (config.bos_token_id, config.eos_token_id):
        raise ConfigError("decoder_tokens with target 'dag' needs bos_token_id and eos_token_id: give them")


def _check_shared_sizes(config: Any) -> None:
    names = ("model_type", *backbone_of(config.encoder).shared_fields)
    different = [name for name in names if getattr(config.encoder, name) != getattr(config.decoder, name, None)]
    if different:
        raise ConfigError(
            f"tie_encoder_decoder needs two halves of the same size, but these differ: {', '.join(different)}: "
            "make them equal, or set tie_encoder_decoder to false"
        )
