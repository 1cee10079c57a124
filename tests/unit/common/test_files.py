"""New files and directories: complete under their name, or not there at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bnb_ds.common.files import new_directory, new_file, write_atomic
from bnb_ds.errors import DataError


def test_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a"
    with new_file(path) as file:
        file.write(b"content")
        assert not path.exists()
    assert path.read_bytes() == b"content"
    assert os.listdir(path.parent) == ["a"]
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("existing", [False, True])
def test_directory_appears_when_it_is_whole(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "sub" / "d"
    if existing:
        path.mkdir(parents=True)
    with new_directory(path) as temporary:
        (temporary / "a").write_text("content")
        assert not (path / "a").exists()
    assert (path / "a").read_text() == "content"
    assert os.listdir(path.parent) == ["d"]
    (tmp_path / "plain").mkdir()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("make", [new_file, new_directory])
def test_exception_leaves_nothing(tmp_path: Path, make) -> None:
    def fail() -> None:
        with make(tmp_path / "out"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("make", [new_file, new_directory])
@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_nothing_is_replaced(tmp_path: Path, make, kind: str) -> None:
    path = tmp_path / "out"
    if kind == "file":
        path.write_text("mine")
    elif kind == "link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
        (path / "mine").write_text("")
    with pytest.raises(DataError, match=r"/out: already exists; remove it or choose another output"), make(path):
        raise AssertionError("the block must not run")


@pytest.mark.parametrize("make", [new_file, new_directory])
def test_disk_that_refuses(tmp_path: Path, make) -> None:
    (tmp_path / "file").write_text("")
    message = r"/file/out: cannot write: (Not a directory|File exists); check space and permissions or choose another"
    with pytest.raises(DataError, match=message), make(tmp_path / "file" / "out"):
        raise AssertionError("the block must not run")


@pytest.mark.parametrize(("folder", "reason"), [("missing", "No such file or directory"), ("file", "Not a directory")])
def test_disk_that_refuses_a_replacement(tmp_path: Path, folder: str, reason: str) -> None:
    (tmp_path / "file").write_text("")
    message = f"/{folder}/a: cannot write: {reason}; check space and permissions or choose another output"
    with pytest.raises(DataError, match=message):
        write_atomic(tmp_path / folder / "a", "")


def test_a_replacement_is_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    write_atomic(path, "new")
    assert path.read_text() == "new"
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a"]
