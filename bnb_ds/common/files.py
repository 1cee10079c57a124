"""Writing that survives a crash: a file is whole under its name, or not there."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from bnb_ds.errors import DataError

#: what reading a text may raise, compressed or not
READING_ERRORS = (OSError, EOFError, zlib.error, UnicodeDecodeError)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content, in constant memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Push a file or a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced_text_file(path: Path) -> Iterator[TextIO]:
    """A UTF-8 file to write that replaces ``path`` when the block ends without an exception.

    Readers see the old content or the whole new one, never a part.

    Raises:
        DataError: the disk refuses (no such directory, no permission, no space).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot write: {error.strerror or error}; choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    with replaced_text_file(path) as file:
        file.write(text)
