"""The one way in which this project writes files that a user names.

A file is complete under its name, or it is not there. Of a link, the target is replaced and the link stays. A device, a
pipe or an open file of a process (``/dev/null``, ``/dev/stdout``, ``>(command)``) has no name that could be replaced:
it is written through.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from bnb_ds.errors import ConfigError, DataError

#: errors that reading a text file can raise, compressed or not
READING_ERRORS = (OSError, EOFError, zlib.error, UnicodeDecodeError)

_STANDARD = {0: "standard input", 1: "standard output"}
_MOST_LINKS = 40  # as in Linux
_OPEN_FILES = "/proc"  # an entry there that looks like a link stands for an open file, with or without a name


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
    """Turn an error of the operating system (full disk, no permission) into a DataError that names ``path``.

    Only the loss of a pipe's reader stays as it is: a program then ends without a word.
    """
    try:
        yield
    except BrokenPipeError:
        raise
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


def link_target(path: str | os.PathLike[str]) -> Path:
    """Where a chain of links ends: the file to replace, which need not exist. Links in ``/proc`` are not followed.

    Raises:
        OSError: the links form a circle.
    """
    path = Path(path)
    for _ in range(_MOST_LINKS):
        if path.name in ("", ".."):
            return Path(os.path.realpath(path))
        directory = Path(os.path.realpath(path.parent))
        path = directory / path.name
        if _OPEN_FILES in map(str, directory.parents) or not path.is_symlink():
            return path
        path = directory / os.readlink(path)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a device, a pipe, a socket or an open file of a process."""
    try:
        if _OPEN_FILES in map(str, link_target(path).parents):
            return True
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def open_stream(path: str | os.PathLike[str]) -> BinaryIO:
    """Open what `is_stream` is true of for writing. Nothing that is there is cut off or replaced.

    Raises:
        OSError: it cannot be opened.
    """
    target = link_target(path)
    if target.parent == Path(_OPEN_FILES, str(os.getpid()), "fd") and target.name.isdecimal():
        # Opening it by its name would begin at the start of a file, and fails for sockets.
        return os.fdopen(os.dup(int(target.name)), "wb")
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), "wb")


def refuse_output(
    path: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str] | int] = (),
    *,
    flag: str = "--output",
    is_new: bool = False,
    makes_parents: bool = False,
) -> None:
    """Refuse a file that could not be written after the work, or that would destroy what the work reads.

    Args:
        path: the file to write.
        inputs: files that are read, under any name, or numbers of open files; those that do not exist are ignored.
        flag: names ``path`` in messages.
        is_new: the file must not exist yet, as for `new_file`.
        makes_parents: the directories above are made when the file is written.

    Raises:
        ConfigError: it is a directory or one of the inputs, or lies in no directory or in one without permission.
        DataError: it exists, and ``is_new`` is set.
    """
    path = Path(path)
    _refuse_unusable_name(path)
    if path.is_dir():
        raise ConfigError(f"{flag} {path}: is a directory: give the name of a file")
    refuse_same_file(path, inputs, flag=flag)
    if is_stream(path):
        return
    if is_new:
        _refuse_existing(path)
    with disk_errors(path):
        parent = link_target(path).parent
    if not makes_parents and not parent.is_dir():
        missing = parent if path.is_symlink() else path.parent
        raise ConfigError(f"{flag} {path}: there is no directory {missing}: make it first")
    _refuse_protected(path, parent, flag)


def refuse_overwriting(path: str | os.PathLike[str], *, overwrite: bool, or_else: str = "") -> None:
    """Refuse an output that holds something, unless the user has asked to replace it; ``or_else`` is another way out.

    Raises:
        DataError: it is a file that is not empty.
    """
    path = Path(path)
    if overwrite or is_stream(path) or not path.is_file() or path.stat().st_size == 0:
        return
    raise DataError(f"{path}: already exists; add --overwrite to replace it{or_else}, or choose another output")


def refuse_same_file(
    path: str | os.PathLike[str] | int, inputs: Iterable[str | os.PathLike[str] | int], *, flag: str = "--output"
) -> None:
    """Raise ConfigError if an output (a name, or the number of an open file) is an input. A device may be both."""
    found = _status(path)
    if found is None or stat.S_ISCHR(found.st_mode):
        return
    for name in inputs:
        if (other := _status(name)) is not None and os.path.samestat(found, other):
            output, source = (_STANDARD.get(given, given) for given in (path, name))
            raise ConfigError(f"{flag} {output}: is the same file as {source}, which is read: choose another output")


def refuse_directory(path: str | os.PathLike[str], *, flag: str = "--output", is_new: bool = False) -> None:
    """Refuse a directory that could not be made or filled after the work.

    Args:
        path: the directory to write.
        flag: names ``path`` in messages.
        is_new: it must not exist yet or be empty, as for `new_directory`.

    Raises:
        ConfigError: it is no directory, or there is no permission to write it.
        DataError: it is not empty or is the present directory, and ``is_new`` is set.
    """
    path = Path(path)
    _refuse_unusable_name(path)
    if is_new:
        _refuse_filled(path)
    elif (path.exists() or path.is_symlink()) and not path.is_dir():
        raise ConfigError(f"{flag} {path}: is no directory: choose another name")
    _refuse_protected(path, path if path.is_dir() and not is_new else path.absolute().parent, flag)


@contextmanager
def replaced_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` when the block ends without an exception.

    Raises:
        DataError: the disk refuses (no such directory, no permission, no space).
    """
    with disk_errors(path):
        if is_stream(path):
            with open_stream(path) as file:
                yield file
            return
        with _moved_into_place(link_target(path)) as temporary, open(temporary, "xb") as file:
            yield file
            sync_file(file)


def write_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file that replaces ``path``. Readers see either the old content or all of the new content.

    Raises:
        DataError: the disk refuses (no such directory, no permission, no space).
    """
    data = text.encode("utf-8")
    with replaced_file(path) as file:
        file.write(data)


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that appears under ``path`` when the block ends without an exception.

    Raises:
        DataError: ``path`` exists and is no device or pipe, or the disk refuses.
    """
    path = Path(path)
    if not is_stream(path):
        _refuse_existing(path)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as file:
        yield file


@contextmanager
def new_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A directory to fill. It appears under ``path`` when the block ends without an exception.

    Raises:
        DataError: ``path`` exists and is not an empty directory, or is the present one, or the disk refuses.
    """
    path = Path(path)
    _refuse_filled(path)
    with disk_errors(path):
        path = link_target(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _moved_into_place(path) as temporary:
            temporary.mkdir()
            yield temporary
            sync_tree(temporary)


def move_into_place(temporary: Path, path: Path) -> None:
    """Give a finished file or directory its name, with the permissions of a file that it replaces.

    Raises:
        OSError: the disk refuses.
    """
    if path.is_file():
        shutil.copymode(path, temporary)
    os.replace(temporary, path)
    sync(path.parent)


@contextmanager
def _moved_into_place(path: Path) -> Iterator[Path]:
    """A new name beside ``path``, for a file or a directory. It is renamed to ``path`` when the block ends without an
    exception, and removed otherwise.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        yield temporary
        move_into_place(temporary, path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def _refuse_unusable_name(path: Path) -> None:
    """Raise DataError for a name that the operating system does not even look up; it is too long, for example."""
    with disk_errors(path), suppress(FileNotFoundError, NotADirectoryError):
        os.stat(path)


def _refuse_existing(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise DataError(f"{path}: already exists; remove it or choose another output")


def _refuse_filled(path: Path) -> None:
    if path.is_dir() and os.path.samefile(path, os.curdir):
        raise DataError(f"{path}: is the present directory, which cannot be replaced; choose another output")
    if not (path.is_dir() and not any(path.iterdir())):
        _refuse_existing(path)


def _refuse_protected(path: Path, directory: Path, flag: str) -> None:
    """Raise ConfigError unless files can be made in a directory, or in the first that exists above it."""
    while not directory.exists():
        directory = directory.parent
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(f"{flag} {path}: there is no permission to write in {directory}: choose another output")


def _status(name: str | os.PathLike[str] | int) -> os.stat_result | None:
    """What the operating system knows of a file or of the number of an open file; None if it is not there."""
    try:
        return os.stat(name)
    except (OSError, ValueError):  # a name with a null byte gives a ValueError
        return None
