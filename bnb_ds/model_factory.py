"""From the recipe's ``model`` section and a shard directory to a model ready to train."""

from __future__ import annotations

from pathlib import Path

from bnb_ds.config import ModelSection, ModelSize
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration, decoder_lengths
from bnb_ds.shards import TokenShards
from bnb_ds.tokenization import load_tokenizer, tokenizer_hash


def build_model(section: ModelSection, shards: TokenShards, max_length: int) -> BnbForConditionalGeneration:
    """Make the model: random weights of a given size, or BERT checkpoints.

    Args:
        section: what to build.
        shards: their tokenizer fixes vocabulary and special ids.
        max_length: longest source in tokens.

    Raises:
        ConfigError: the model has fewer positions than ``max_length`` needs.
        DataError: the checkpoint was trained with another vocabulary than the shards were made with.
    """
    if section.encoder is None:
        model = BnbForConditionalGeneration(_random_config(section, shards))
    else:
        _refuse_other_tokenizer(Path(section.encoder), shards)
        # Shards made for the encoder's vocabulary are source and target; the decoder must speak it too.
        if section.decoder is not None:
            _refuse_other_tokenizer(Path(section.decoder), shards)
        model = BnbForConditionalGeneration.from_bert(section.encoder, section.decoder, **_bnb_fields(section, shards))
        for half, config in (("encoder", model.config.encoder), ("decoder", model.config.decoder)):
            if config.vocab_size < shards.vocab_size:
                raise DataError(
                    f"model.{half}: its vocabulary has {config.vocab_size} tokens, the shards {shards.vocab_size};"
                    " prepare the shards with the checkpoint's own tokenizer"
                )
    _refuse_short_positions(model.config, max_length)
    return model


def _random_config(section: ModelSection, shards: TokenShards) -> BnbConfig:
    size = section.size or ModelSize()
    bert = {
        **size.model_dump(),
        "vocab_size": shards.vocab_size,
        "pad_token_id": shards.special_ids["pad"],
        "hidden_dropout_prob": section.hidden_dropout,
        "attention_probs_dropout_prob": section.attention_dropout,
    }
    return BnbConfig(encoder=bert, decoder=bert, **_bnb_fields(section, shards))


def _bnb_fields(section: ModelSection, shards: TokenShards) -> dict[str, object]:
    same_name = (
        "latent_size",
        "latent_dropout",
        "decoder_length_ratio",
        "decoder_length_offset",
        "decoder_length_min",
        "decoder_length_max",
        "decoder_positions",
    )
    return {
        **{name: getattr(section, name) for name in same_name},
        "blank_token_id": shards.special_ids["pad"],
        "pad_token_id": shards.special_ids["pad"],
        "bos_token_id": shards.special_ids["cls"],
        "eos_token_id": shards.special_ids["sep"],
    }


def _refuse_other_tokenizer(checkpoint: Path, shards: TokenShards) -> None:
    if not any((checkpoint / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return  # a checkpoint without its tokenizer, or a hub name: the size of the vocabulary is still compared
    if tokenizer_hash(load_tokenizer(checkpoint)) != shards.tokenizer_hash:
        raise DataError(
            f"{checkpoint}: its tokenizer is not the one that data.shards was made with;"
            f" run `bnb-ds prep text --tokenizer {checkpoint} ...` again, or choose another model"
        )


def _refuse_short_positions(config: BnbConfig, max_length: int) -> None:
    positions = config.encoder.max_position_embeddings
    if max_length > positions:
        raise ConfigError(f"data.max_length {max_length}: the encoder has {positions} positions; set it to {positions}")
    slots = int(decoder_lengths(max_length, config))
    limit = config.decoder.max_position_embeddings
    if config.decoder_positions == "absolute" and slots > limit:
        raise ConfigError(
            f"model.decoder_positions absolute: {max_length} source tokens open {slots} decoder positions, the decoder"
            f" has {limit}; set it to shared, or lower data.max_length or model.decoder_length_ratio"
        )
