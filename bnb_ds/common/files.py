"""Writing that survives a crash: a file is whole under its name, or not there."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

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


@contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the operating system refuses (full disk, no permission) into a DataError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot write: {error.strerror or error}; check space and permissions or choose another output"
        ) from error


def sync_tree(directory: Path) -> None:
    """Make every file and name below a directory durable."""
    for parent, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        sync(Path(parent))


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and make its content durable (not its name: that takes a sync of the directory)."""
    with open(path, "wb") as file:
        file.write(data)
        sync_file(file)


def sync_file(file: BinaryIO) -> None:
    """Flush a file that is open for writing down to the disk."""
    file.flush()
    os.fsync(file.fileno())


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
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        try:
            with open(descriptor, "wb") as file:
                yield file
                sync_file(file)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def new_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A directory to fill that appears under ``path`` when the block ends without an exception.

    Raises:
        DataError: ``path`` exists and is not an empty directory, or the disk refuses.
    """
    path = Path(path)
    if not (path.is_dir() and not any(path.iterdir())):
        _refuse_existing(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        try:
            yield temporary
            sync_tree(temporary)
            temporary.chmod(0o777 & ~_umask())
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _refuse_existing(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise DataError(f"{path}: already exists; remove it or choose another output")


def _umask() -> int:
    # There is no call that only reads it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
