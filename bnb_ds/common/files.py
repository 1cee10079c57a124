"""Writing files that survive a crash: a file is complete under its name, or it is not there."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from bnb_ds.errors import DataError

#: errors that reading a text file can raise, compressed or not
READING_ERRORS = (OSError, EOFError, zlib.error, UnicodeDecodeError)


def sha256_file(path: Path, progress: Callable[[], None] = lambda: None) -> str:
    """Hex digest of a file's content, in constant memory; ``progress`` is called after every 64 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if file.tell() % (1 << 26) == 0:
                progress()
    return digest.hexdigest()


@contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an error of the operating system (full disk, no permission) into a DataError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot write: {error.strerror or error}; check space and permissions or choose another output"
        ) from error


def sync(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(file: IO[bytes] | IO[str]) -> None:
    """Flush a file that is open for writing to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_tree(directory: Path) -> None:
    """Flush every file and every name below a directory to the disk."""
    for parent, _, names in os.walk(directory):
        for name in (*names, "."):
            sync(Path(parent, name))


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and flush its content to the disk. Its name is on the disk only after a sync of the directory."""
    with open(path, "wb") as file:
        file.write(data)
        sync_file(file)


def write_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 text file that replaces ``path``. Readers see either the old content or all of the new content.

    Raises:
        DataError: the disk refuses (no such directory, no permission, no space).
    """
    with disk_errors(path), _moved_into_place(path) as temporary, open(temporary, "x", encoding="utf-8") as file:
        file.write(text)
        sync_file(file)


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that appears under ``path`` when the block ends without an exception.

    Raises:
        DataError: ``path`` exists, or the disk refuses.
    """
    path = Path(path)
    _refuse_existing(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _moved_into_place(path) as temporary, open(temporary, "xb") as file:
            yield file
            sync_file(file)


@contextmanager
def new_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A directory to fill. It appears under ``path`` when the block ends without an exception.

    Raises:
        DataError: ``path`` exists and is not an empty directory, or the disk refuses.
    """
    path = Path(path)
    if not (path.is_dir() and not any(path.iterdir())):
        _refuse_existing(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _moved_into_place(path) as temporary:
            temporary.mkdir()
            yield temporary
            sync_tree(temporary)


@contextmanager
def _moved_into_place(path: Path) -> Iterator[Path]:
    """A new name beside ``path``, for a file or a directory. It is renamed to ``path`` when the block ends without an
    exception, and removed otherwise.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def _refuse_existing(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise DataError(f"{path}: already exists; remove it or choose another output")
