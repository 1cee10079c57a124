"""``bnb-ds reconstruct``: mask words of held-out documents, and let a model restore them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bnb_ds.common.randomness import hash64
from bnb_ds.data.corruption import NO_TOKEN, Corruption
from bnb_ds.data.samples import PretrainSamples
from bnb_ds.data.tokenization import tokenizer_hash
from bnb_ds.decoding.decode import greedy_rows
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.generate.open_model import load_exported, longest_source
from bnb_ds.model.target_rules import BnbTargetRules
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.shards.reader import TokenShards
from bnb_ds.tasks.codec import Codec


def reconstructions(
    model_dir: Path, shards_dir: Path, *, num_documents: int, max_length: int, mask_probability: float, seed: int
) -> Iterator[tuple[str, str, str]]:
    """Yield masked source, output and original of the first held-out documents, as text.

    A model with ``segment_blocks`` fills in segments: the second and third text are segments with [MASK] between them,
    and the graph has a block for each of the original's, as in training.

    Raises:
        DataError: the shards were made with another tokenizer, or have no held-out documents.
        ConfigError: the length or the probability is out of range.
    """
    model, codec = load_exported(model_dir), Codec.load(model_dir)
    shards = TokenShards(shards_dir, "heldout")
    if tokenizer_hash(codec.source) != shards.tokenizer_hash:
        raise DataError(
            f"{shards_dir}: was made with another tokenizer than {model_dir}; give the shards of its training"
        )
    if len(shards) == 0:
        raise DataError(f"{shards_dir}: holds no held-out documents; prepare it with another --holdout")
    longest = longest_source(model.config)
    if not 3 <= max_length <= longest:
        raise ConfigError(f"--max-length {max_length}: give 3 to {longest} tokens, the range of the model")
    if not 0 <= mask_probability <= 1:
        raise ConfigError(f"--mask-probability {mask_probability}: give a number from 0 to 1")
    if mask_probability and "mask" not in shards.special_ids:
        raise ConfigError(
            f"--mask-probability {mask_probability}: the tokenizer of {shards_dir} has no mask token; give"
            " --mask-probability 0"
        )
    fills_in = model.config.segment_blocks
    mixture = {"infill" if fills_in else "mlm+plm": 1.0}
    noise = Corruption(mask_probability, 0.0, shards.special_ids.get("mask", NO_TOKEN), shards.vocab_size, mixture)
    samples = PretrainSamples(
        shards,
        sequence="truncate",
        max_length=max_length,
        corruption=noise,
        seed=seed,
        rules=BnbTargetRules(model.config),
    )
    for sample in range(min(num_documents, len(shards))):
        original, cu_seqlens = samples.original(np.array([sample]))
        made = noise(original, cu_seqlens, hash64(seed, sample))
        source = torch.from_numpy(made.source)[None].to(model.device)
        output = _filled_in(model, source, made.target) if fills_in else model.generate(source)[0]
        yield (
            codec.source.decode(made.source[1:-1]),
            codec.target.decode(output[1:-1]) if fills_in else codec.decode([output.tolist()])[0],
            codec.source.decode(made.target[1:-1]),
        )


@torch.no_grad()
def _filled_in(model: BnbForConditionalGeneration, source_1L: Tensor, target: np.ndarray) -> Tensor:
    """The best path, int64 [n], through a graph that has a block for each segment of the target."""
    labels = torch.from_numpy(target)[None].long().to(model.device)
    output = model(source_1L, labels=labels, return_logits=False, return_best=True)
    (row,) = greedy_rows(output.best[0], output.decoder_lengths, model.config)
    return row
