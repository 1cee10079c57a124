"""Load exported models, and choose the device to run them on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from bnb_ds.common.hub import ONNX_FILE, TARGET_TOKENIZER, checkpoint_errors, export_hint, model_type
from bnb_ds.errors import CheckpointError, ConfigError
from bnb_ds.model.backbones.entries import positions_of
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.slots import decoder_lengths
from bnb_ds.modeling import BnbForConditionalGeneration

_HASHED_BYTES = 1 << 20
_MODEL_SUFFIXES = (".json", ".txt", ".safetensors", ".onnx", ".data")


def refuse_other_directories(directory: Path, *, or_onnx: bool = False) -> None:
    """Raise CheckpointError for a directory that ``bnb-ds export`` did not write, in torch (or ONNX) format."""
    has_weights = any(directory.glob("*.safetensors")) or (or_onnx and (directory / ONNX_FILE).is_file())
    if model_type(directory) != BnbConfig.model_type or not has_weights:
        if not directory.exists():
            raise CheckpointError(f"{directory}: no such directory; give a model that `bnb-ds export` wrote")
        hint = export_hint(directory)
        if not or_onnx and (directory / ONNX_FILE).is_file():
            hint = "is an ONNX model, which cannot do this; give the torch model that it was made from"
        raise CheckpointError(f"{directory}: {hint or 'not an exported model; give one that `bnb-ds export` wrote'}")


def load_exported(directory: Path, device: torch.device | None = None) -> BnbForConditionalGeneration:
    """Load the model of an exported directory, in evaluation mode. `Codec.load` reads its tokenizers.

    Args:
        directory: an exported model.
        device: None: a GPU if there is one, else the CPU.

    Raises:
        CheckpointError: ``bnb-ds export`` did not write the directory, or files are missing or damaged.
    """
    refuse_other_directories(directory)
    with checkpoint_errors(directory, "BERT-NAR-BERT model"):
        model, info = BnbForConditionalGeneration.from_pretrained(directory, output_loading_info=True)
    if info["missing_keys"]:
        raise CheckpointError(f"{directory}: lacks weights such as {min(info['missing_keys'])}; export it again")
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.eval().to(device)


def longest_source(config: BnbConfig) -> int:
    """The most source tokens that encoder and decoder positions allow, including [CLS] and [SEP]."""
    longest = positions_of(config.encoder)
    if config.decoder_positions == "shared":
        return min(longest, positions_of(config.decoder))
    while longest > 3 and decoder_lengths(longest, config) > positions_of(config.decoder):
        longest -= 1
    return longest


def model_files(directory: Path) -> list[Path]:
    """The files of a model that decide its outputs, in a fixed order."""
    found = [*directory.glob("*"), *(directory / TARGET_TOKENIZER).glob("*")]
    return sorted(path for path in found if path.suffix in _MODEL_SUFFIXES and path.is_file())


def fingerprint(directory: Path) -> str:
    """A hash of the size, the beginning and the end of each file of a model; this is quick even for large models."""
    digest = hashlib.sha256()
    for path in model_files(directory):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(directory)} {size}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(_HASHED_BYTES))
            file.seek(max(size - _HASHED_BYTES, 0))
            digest.update(file.read(_HASHED_BYTES))
    return digest.hexdigest()


def choose_device(name: str | None) -> torch.device:
    """The torch device for a name: ``cpu``, ``cuda`` or ``cuda:1``; None: a GPU if there is one, else the CPU.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name}: give cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: give cpu, cuda or cuda:1")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs here; give cpu")
    return device
