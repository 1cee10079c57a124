"""Finding the files of Hugging Face checkpoints, and reporting their errors in one line."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers.utils import cached_file, logging

from bnb_ds.errors import BnbError, CheckpointError

#: directory of the second tokenizer in a saved model whose sources and targets have different ones
TARGET_TOKENIZER = "target_tokenizer"
#: files from which transformers makes a tokenizer.json, and the package that it needs for it
SLOW_TOKENIZER_FILES = {
    "sentencepiece.bpe.model": "sentencepiece",
    "spiece.model": "sentencepiece",
    "spm.model": "sentencepiece",
    "tokenizer.model": "sentencepiece",
    "vocab.json": None,
}
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
#: the graph in a model directory that `bnb-ds export --format onnx` wrote
ONNX_FILE = "model.onnx"
#: what a call of the hub raises where there is no such name, no permission or no connection; the bases of its own error
#: are OSError and that of its HTTP client, which differs between releases
HUB_ERRORS: tuple[type[Exception], ...] = (HFValidationError, *HfHubHTTPError.__bases__)


def hub_reason(error: Exception) -> str:
    """The last line of an error of the hub, which says the most."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith("For more information check")]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")


def model_directory(name: str | PathLike[str]) -> Path:
    """A model's directory: the one of this path, or the files of OWNER/NAME on the hub, which are fetched.

    Raises:
        CheckpointError: there is no such directory, and the hub does not give its files.
    """
    path = Path(name)
    if path.exists() or not _HUB_NAME.fullmatch(str(name)):
        return path
    try:
        return Path(snapshot_download(str(name)))
    except HUB_ERRORS as error:
        raise CheckpointError(
            f"{name}: is no directory here, and the hub does not give it: {hub_reason(error)}; give a directory that "
            "`bnb-ds export` wrote"
        ) from None


@contextmanager
def checkpoint_errors(source: str | PathLike[str], kind: str) -> Iterator[None]:
    """Read a checkpoint without transformers' warnings. Any error becomes a CheckpointError that names ``source``."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a missing head or an unused pooler is expected and handled
    try:
        yield
    except BnbError:
        raise
    except Exception as error:  # transformers, safetensors, json and the hub raise many types, all for the same reason
        if hint := export_hint(Path(source)):
            raise CheckpointError(f"{source}: {hint}") from error
        raise CheckpointError(
            f"{source}: cannot be read as a {kind}: {_reason(error)}; restore it, or name another"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def _reason(error: Exception) -> str:
    """What an error of transformers says, in a line."""
    first, second, *_ = [*str(error).splitlines(), "", ""]
    # A failed check of a field names the field in one line and the fault in the next.
    reason = f"{first} {second.strip()}" if first.endswith(":") else first
    if isinstance(error, KeyError):  # it says nothing but the key
        reason = f"unknown or missing {reason}"
    return reason.rstrip(".") or type(error).__name__


def export_hint(directory: Path) -> str | None:
    """If a directory is a run or one of its checkpoints: what it is, and the command that makes a model of it."""
    way = f"make one with `bnb-ds export {shlex.quote(str(directory))} NEW`, and give NEW"
    # These functions know no error: a hub name may be anything.
    if any(os.path.exists(directory / name) for name in ("config.resolved.yaml", "checkpoints")):
        return f"is the output_dir of a run, not a model; {way}"
    if os.path.exists(directory / "checkpoint.json"):
        return f"is a checkpoint of a run, not a model; {way}"
    return None


def model_type(directory: Path) -> str | None:
    """What the configuration in a directory says; None where none can be read."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None


def refuse_other_model(source: str, wanted: str) -> None:
    """Raise CheckpointError for a path without a model of the type ``wanted``; a name on the hub is not looked up.

    transformers takes a directory without a configuration for a model with the defaults of all settings.
    """
    directory = Path(source)
    if not directory.exists():
        if _HUB_NAME.fullmatch(source):
            return
        raise CheckpointError(f"{source}: no such directory; give a model that `bnb-ds export` wrote")
    if hint := export_hint(directory):
        raise CheckpointError(f"{source}: {hint}")
    found = model_type(directory)
    if found not in (None, wanted) or not (directory / "config.json").exists():
        what = "has no config.json" if found is None else f"its config.json is that of a {found} model, not a {wanted}"
        raise CheckpointError(f"{source}: {what}; give a model that `bnb-ds export` wrote")


def tokenizer_directory(checkpoint: str) -> Path | None:
    """The directory of a checkpoint's tokenizer files; None for a local directory without any.

    Args:
        checkpoint: local directory or hub name. The files of a hub name are fetched.

    Raises:
        CheckpointError: the files cannot be fetched.
    """
    if Path(checkpoint).is_dir():
        names = ("tokenizer.json", "vocab.txt", *SLOW_TOKENIZER_FILES)  # slow files are refused when they are read
        has_files = any((Path(checkpoint) / name).is_file() for name in names)
        return Path(checkpoint) if has_files else None
    try:
        cached_file(checkpoint, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False)
        paths = [
            cached_file(checkpoint, name, _raise_exceptions_for_missing_entries=False)
            for name in ("tokenizer.json", "vocab.txt")
        ]
    except (OSError, ValueError):  # neither a directory here nor a name on the hub
        paths = []
    for path in filter(None, paths):
        return Path(path).parent
    raise CheckpointError(f"{checkpoint}: its tokenizer cannot be fetched; give a local directory that holds it")
