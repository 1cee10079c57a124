"""Files of Hugging Face checkpoints: where they lie, and their errors in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from transformers.utils import cached_file, logging

from bnb_ds.errors import BnbError, CheckpointError


@contextmanager
def checkpoint_errors(source: str | PathLike[str], kind: str) -> Iterator[None]:
    """Quiet reading of a checkpoint; whatever is wrong with it becomes a CheckpointError that names ``source``."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a missing head or a spare pooler is expected here, and handled
    try:
        yield
    except BnbError:
        raise
    except Exception as error:  # transformers, safetensors, json and the hub raise many kinds; all mean the same here
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise CheckpointError(
            f"{source}: cannot be read as a {kind}: {reason.rstrip('.')}; restore it, or name another"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


#: of a saved model whose target has a tokenizer of its own
TARGET_TOKENIZER = "target_tokenizer"


def tokenizer_directory(checkpoint: str) -> Path | None:
    """Where the tokenizer files of a local directory or hub name lie, once fetched; None in a directory without any."""
    if Path(checkpoint).is_dir():
        has_files = any((Path(checkpoint) / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
        return Path(checkpoint) if has_files else None
    try:
        cached_file(checkpoint, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False)
        paths = [
            cached_file(checkpoint, name, _raise_exceptions_for_missing_entries=False)
            for name in ("tokenizer.json", "vocab.txt")
        ]
    except (OSError, ValueError):  # no directory here, and no name of the hub
        paths = []
    for path in filter(None, paths):
        return Path(path).parent
    raise CheckpointError(f"{checkpoint}: its tokenizer cannot be fetched; give a local directory that holds it")
