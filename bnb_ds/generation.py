"""Text in, text out: an exported model over lines, and over masked held-out documents."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from bnb_ds.corruption import Corruption
from bnb_ds.errors import CheckpointError, ConfigError, DataError
from bnb_ds.files import replaced_text_file
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration, decoder_lengths
from bnb_ds.randomness import hash64
from bnb_ds.samples import PretrainSamples
from bnb_ds.shards import TokenShards
from bnb_ds.tokenization import load_tokenizer, tokenizer_hash


def load_exported(directory: Path) -> tuple[BnbForConditionalGeneration, PreTrainedTokenizerBase]:
    """Model (in evaluation mode, on the GPU where there is one) and tokenizer of an exported directory.

    Raises:
        CheckpointError: the directory is not one that ``bnb-ds export`` wrote.
    """
    if _model_type(directory) != BnbConfig.model_type or not any(directory.glob("*.safetensors")):
        raise CheckpointError(
            f"{directory}: not an exported model; write one with `bnb-ds export CHECKPOINT {directory}`"
        )
    try:
        model, info = BnbForConditionalGeneration.from_pretrained(directory, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: the model cannot be read: {error}; export it again") from None
    if info["missing_keys"]:
        raise CheckpointError(f"{directory}: lacks weights such as {min(info['missing_keys'])}; export it again")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.eval().to(device), load_tokenizer(directory)


def _model_type(directory: Path) -> str | None:
    try:
        return json.loads((directory / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError):
        return None


def generate_lines(model_dir: Path, input_name: str, output_name: str, *, batch_size: int) -> str:
    """Write one generated line for each input line, in order; an empty line stays empty.

    Args:
        model_dir: exported model.
        input_name: text file in UTF-8, or ``-``.
        output_name: text file, which appears under its name when it is complete, or ``-``.
        batch_size: lines decoded together.

    Returns:
        One line for the user: how many lines, and how many were cut to the model's positions.
    """
    model, tokenizer = load_exported(model_dir)
    max_length = _longest_source(model)
    num_lines = num_truncated = 0
    with _open_input(input_name) as lines, _open_output(output_name) as output:
        texts = _decoded_lines(lines, input_name)
        while batch := list(itertools.islice(texts, batch_size)):
            sources = tokenizer(batch, add_special_tokens=False)["input_ids"]
            num_lines += len(batch)
            num_truncated += sum(len(source) > max_length - 2 for source in sources)
            for text in _generate_batch(model, tokenizer, [source[: max_length - 2] for source in sources]):
                output.write(text + "\n")
            output.flush()
    cut = f"; {num_truncated} cut to the model's {max_length} tokens" if num_truncated else ""
    return f"generate: {num_lines} lines from {input_name} to {output_name}{cut}"


def reconstructions(
    model_dir: Path, shards_dir: Path, *, num_documents: int, max_length: int, mask_probability: float, seed: int
) -> Iterator[tuple[str, str, str]]:
    """Source with masks, output and original, as text, of the first held-out documents.

    Raises:
        DataError: the shards were made with another tokenizer, or hold no held-out documents.
        ConfigError: a length or probability that the model or the noise does not take.
    """
    model, tokenizer = load_exported(model_dir)
    shards = TokenShards(shards_dir, "heldout")
    if tokenizer_hash(tokenizer) != shards.tokenizer_hash:
        raise DataError(
            f"{shards_dir}: made with another tokenizer than {model_dir}; give the shards it was trained on"
        )
    if len(shards) == 0:
        raise DataError(f"{shards_dir}: holds no held-out documents; prepare it with another --holdout")
    if not 3 <= max_length <= _longest_source(model):
        raise ConfigError(f"--max-length {max_length}: give 3 to {_longest_source(model)} tokens, as the model reads")
    if not 0 <= mask_probability <= 1:
        raise ConfigError(f"--mask-probability {mask_probability}: give a number from 0 to 1")
    noise = Corruption(mask_probability, 0.0, shards.special_ids["mask"], shards.vocab_size)
    samples = PretrainSamples(
        shards, sequence="truncate", max_length=max_length, corruption=noise, seed=seed, config=model.config
    )
    for sample in range(min(num_documents, len(shards))):
        original, cu_seqlens = samples.original(np.array([sample]))
        source = noise(original, cu_seqlens, hash64(seed, sample)).source
        output = model.generate(torch.from_numpy(source)[None].to(model.device))[0]
        yield (
            tokenizer.decode(source[1:-1]),
            tokenizer.decode(output, skip_special_tokens=True),
            tokenizer.decode(original[1:-1]),
        )


def _generate_batch(
    model: BnbForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, sources: list[list[int]]
) -> list[str]:
    filled = [i for i, source in enumerate(sources) if source]
    texts = [""] * len(sources)
    if filled:
        rows = [[tokenizer.cls_token_id, *sources[i], tokenizer.sep_token_id] for i in filled]
        inputs = tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(model.device)
        outputs = model.generate(inputs["input_ids"], inputs["attention_mask"])
        for i, text in zip(filled, tokenizer.batch_decode(outputs, skip_special_tokens=True), strict=True):
            texts[i] = " ".join(text.split())
    return texts


def _longest_source(model: BnbForConditionalGeneration) -> int:
    """Source tokens that encoder and decoder positions allow, [CLS] and [SEP] included."""
    config = model.config
    longest = config.encoder.max_position_embeddings
    if config.decoder_positions == "absolute":
        while longest > 3 and decoder_lengths(longest, config) > config.decoder.max_position_embeddings:
            longest -= 1
    return longest


def _decoded_lines(lines: Iterator[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: line {number} is not UTF-8 ({error.reason}); convert the file first") from None


def _open_input(name: str) -> AbstractContextManager[Iterator[bytes]]:
    if name == "-":
        return contextlib.nullcontext(iter(sys.stdin.buffer))
    try:
        return open(name, "rb")
    except OSError as error:
        raise DataError(f"--input {name}: cannot be read ({error.strerror}); give a text file or -") from None


def _open_output(name: str) -> AbstractContextManager[TextIO]:
    return contextlib.nullcontext(sys.stdout) if name == "-" else replaced_text_file(Path(name))
