"""Outputs that are no regular files: devices, pipes and links. What cannot be written, or would destroy an input."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bnb_ds.common.files import (
    is_stream,
    link_target,
    new_directory,
    new_file,
    refuse_directory,
    refuse_output,
    refuse_same_file,
    replaced_file,
    write_atomic,
)
from bnb_ds.errors import ConfigError, DataError


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A /dev/null of our own, so that a fault cannot harm that of the machine."""
    path = tmp_path / "null"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        path.write_bytes(b"")
    except OSError as error:
        pytest.skip(f"cannot make a device here: {error}")
    return path


@pytest.fixture
def pipe(tmp_path: Path) -> tuple[Path, Callable[[], bytes]]:
    """A named pipe, and a function that waits for everything that was written into it."""
    path, found = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()), daemon=True)
    reader.start()

    def received() -> bytes:
        reader.join(10)
        return found[0]

    return path, received


def write_new(path: Path, text: str) -> None:
    with new_file(path) as file:
        file.write(text.encode())


WRITERS = [write_atomic, write_new]


@pytest.mark.parametrize("write", WRITERS)
def test_a_device_is_written_through(device: Path, write) -> None:
    before = os.stat(device)
    assert is_stream(device)
    write(device, "text")
    assert os.path.samestat(before, os.stat(device))
    assert stat.S_ISCHR(os.lstat(device).st_mode)
    assert os.listdir(device.parent) == [device.name]


@pytest.mark.parametrize("write", WRITERS)
def test_a_link_to_a_device_stays_and_so_does_the_device(device: Path, tmp_path: Path, write) -> None:
    link = tmp_path / "link"
    link.symlink_to(device)
    write(link, "text")
    assert link.is_symlink()
    assert stat.S_ISCHR(os.lstat(device).st_mode)


@pytest.mark.parametrize("write", WRITERS)
def test_a_pipe_is_written_through(pipe, write) -> None:
    path, received = pipe
    write(path, "text ä")
    assert received() == "text ä".encode()
    assert stat.S_ISFIFO(os.lstat(path).st_mode)


@pytest.mark.parametrize("name", ["/proc/self/fd", "/dev/fd"])
def test_an_open_file_is_written_where_it_stands(tmp_path: Path, name: str) -> None:
    """As `command --output /dev/stdout >> file` expects it."""
    path = tmp_path / "file"
    with open(path, "wb", buffering=0) as file:
        file.write(b"before ")
        write_atomic(f"{name}/{file.fileno()}", "text")
        write_new(Path(f"{name}/{file.fileno()}"), " again")
        file.write(b" behind")
    assert path.read_bytes() == b"before text again behind"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_device_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "full"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        path.open("wb").close()
    except OSError as error:
        pytest.skip(f"cannot make a device here: {error}")
    with pytest.raises(DataError, match="/full: cannot write: No space left on device; check space"):
        write_atomic(path, "text")


@pytest.mark.parametrize("exists", [True, False])
def test_of_a_link_the_target_is_replaced(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "there").mkdir()
    target, link, second = tmp_path / "there" / "target", tmp_path / "link", tmp_path / "second"
    if exists:
        target.write_text("old")
        target.chmod(0o600)
    link.symlink_to("there/target")
    second.symlink_to(link)
    write_atomic(second, "new")
    assert (os.readlink(second), os.readlink(link)) == (str(link), "there/target")
    assert target.read_text() == "new"
    assert not target.is_symlink()
    if exists:
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.listdir(target.parent) == ["target"]


def test_a_circle_of_links_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(DataError, match=r"/a: cannot write: Too many levels of symbolic links"):
        write_atomic(tmp_path / "a", "text")
    with pytest.raises(DataError, match=r"/a: cannot write: Too many levels of symbolic links"):
        refuse_output(tmp_path / "a")


def test_a_link_to_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("d")
    with new_directory(tmp_path / "link") as directory:
        (directory / "a").write_text("text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "d" / "a").read_text() == "text"


def test_the_present_directory_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = r"is the present directory, which cannot be replaced; choose another output"
    with pytest.raises(DataError, match=message), new_directory("."):
        raise AssertionError("the block must not run")
    with pytest.raises(DataError, match=message):
        refuse_directory(tmp_path, is_new=True)
    assert link_target("..") == tmp_path.parent


def test_an_exception_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def fail() -> None:
        with replaced_file(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


SPELLINGS = {
    "same name": lambda path: path,
    "other spelling": lambda path: Path(f"{path.parent}/../{path.parent.name}/./{path.name}"),
    "hard link": lambda path: (os.link(path, path.with_name("other")), path.with_name("other"))[1],
    "link": lambda path: (path.with_name("other").symlink_to(path), path.with_name("other"))[1],
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=list(SPELLINGS))
def test_an_input_is_no_output(tmp_path: Path, spelling) -> None:
    source = tmp_path / "in"
    source.write_text("text")
    output = spelling(source)
    with pytest.raises(ConfigError, match=rf"--output .*: is the same file as {source}, which is read: choose another"):
        refuse_output(output, ["/nowhere", source])
    with open(source) as file, pytest.raises(ConfigError, match="is the same file as"):
        refuse_same_file(output, [file.fileno()])
    assert source.read_text() == "text"


def test_a_device_may_be_both_input_and_output(device: Path) -> None:
    refuse_output(device, [device])


def test_what_could_not_be_written_later_is_refused_now(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(ConfigError, match=rf"--png {tmp_path}: is a directory: give the name of a file"):
        refuse_output(tmp_path, flag="--png")
    with pytest.raises(ConfigError, match=r"/no/a: there is no directory .*/no: make it first"):
        refuse_output(tmp_path / "no" / "a")
    (tmp_path / "dangling").symlink_to("no/a")
    with pytest.raises(ConfigError, match=r"/dangling: there is no directory .*/no: make it first"):
        refuse_output(tmp_path / "dangling")
    with pytest.raises(DataError, match=r"/file: already exists; remove it or choose another output"):
        refuse_output(tmp_path / "file", is_new=True)
    with pytest.raises(ConfigError, match=r"--output .*/file: is no directory: choose another name"):
        refuse_directory(tmp_path / "file")
    with pytest.raises(DataError, match=r": already exists; remove it or choose another output"):
        refuse_directory(tmp_path, is_new=True)
    refuse_output(tmp_path / "no" / "a", makes_parents=True)
    refuse_output(tmp_path / "file")
    refuse_directory(tmp_path)
    refuse_directory(tmp_path / "no", is_new=True)


@pytest.mark.parametrize("is_new", [False, True])
@pytest.mark.parametrize("refuse", [refuse_output, refuse_directory])
def test_a_name_that_is_too_long_is_one_line(refuse, is_new: bool, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x: cannot write: File name too long; check space and permissions or choose"):
        refuse(tmp_path / ("x" * 256), is_new=is_new)


def test_missing_permission_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere, so the operating system's answer is made up."""
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "closed")
    message = rf"there is no permission to write in {tmp_path}/closed: choose another output"
    for name in ("closed/a", "closed/no/a"):
        with pytest.raises(ConfigError, match=f"--output {tmp_path}/{name}: {message}"):
            refuse_output(tmp_path / name, makes_parents=True)
        with pytest.raises(ConfigError, match=f"--output {tmp_path}/{name}: {message}"):
            refuse_directory(tmp_path / name)
    with pytest.raises(ConfigError, match=message):
        refuse_directory(tmp_path / "closed")
    refuse_directory(tmp_path / "closed", is_new=True)  # it is replaced in the directory above it
    refuse_output(tmp_path / "open")
