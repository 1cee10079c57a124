"""Finding the files of Hugging Face checkpoints, and reporting their errors in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from transformers.utils import cached_file, logging

from bnb_ds.errors import BnbError, CheckpointError

#: directory of the second tokenizer in a saved model whose sources and targets have different ones
TARGET_TOKENIZER = "target_tokenizer"
#: the graph in a model directory that `bnb-ds export --format onnx` wrote
ONNX_FILE = "model.onnx"


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
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise CheckpointError(
            f"{source}: cannot be read as a {kind}: {reason.rstrip('.')}; restore it, or name another"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def export_hint(directory: Path) -> str | None:
    """If a directory is a run or one of its checkpoints: what it is, and the command that makes a model of it."""
    way = f"make one with `bnb-ds export {directory} NEW`, and give NEW"
    # These functions know no error: a hub name may be anything.
    if any(os.path.exists(directory / name) for name in ("config.resolved.yaml", "checkpoints")):
        return f"is the output_dir of a run, not a model; {way}"
    if os.path.exists(directory / "checkpoint.json"):
        return f"is a checkpoint of a run, not a model; {way}"
    return None


def tokenizer_directory(checkpoint: str) -> Path | None:
    """The directory of a checkpoint's tokenizer files; None for a local directory without any.

    Args:
        checkpoint: local directory or hub name. The files of a hub name are fetched.

    Raises:
        CheckpointError: the files cannot be fetched.
    """
    if Path(checkpoint).is_dir():
        has_files = any((Path(checkpoint) / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
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
