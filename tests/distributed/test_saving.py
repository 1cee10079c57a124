"""A crash or a full disk during saving always leaves a whole checkpoint to resume from."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import deepspeed
import pytest

from bnb_ds.checkpoint import store
from bnb_ds.checkpoint.store import CheckpointWriter
from bnb_ds.errors import DataError

pytestmark = pytest.mark.slow

#: audit events that count as changes to files, in `die_in`
_TRACED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


@pytest.fixture
def saved(make_loop, tmp_path):
    """An engine after its first step, and the directory that holds the checkpoint of this step."""
    loop = make_loop(steps=1, zero_optimization={"stage": 1})
    loop.run(0, 0)
    return loop.engine, tmp_path / "checkpoints"


def die_in(action, *, at_event: int | None = None, file_limit: int | None = None, directory: Path) -> int:
    """Run an action in a child process that is killed on the way.

    Args:
        action: the function to run.
        at_event: kill the child at this change below ``directory``, counted from 0.
        file_limit: kill the child when a file grows beyond this number of bytes.
        directory: the directory that the child changes.

    Returns:
        The exit code of the child: 0 if it finished, otherwise the negative number of the signal.
    """
    pid = os.fork()
    if pid == 0:
        for name in ("barrier", "all_reduce"):  # gloo's threads do not survive a fork, and a single rank needs neither
            setattr(deepspeed.comm, name, lambda *arguments, **options: None)
        events = iter(range(sys.maxsize))

        def count(event: str, arguments: tuple) -> None:
            below = event in _TRACED and str(directory) in " ".join(map(str, arguments))
            if below and next(events) == at_event:
                os.kill(os.getpid(), signal.SIGKILL)

        if at_event is not None:
            sys.addaudithook(count)
        if file_limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel kills a process that writes beyond the limit
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + 60
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError("the child hangs")
        time.sleep(0.005)


def save_second(engine, directory: Path, *, keep: int = 1, background: bool = False) -> None:
    writer = CheckpointWriter(engine, directory, keep=keep, background=background)
    writer.save(2, {"samples_consumed": 16})
    writer.finish()


@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
def test_a_kill_at_any_moment_of_saving_leaves_a_whole_checkpoint(saved, tmp_path, background):
    """The process is killed once before each opening, renaming and removing of a file."""
    engine, directory = saved
    pristine = shutil.copytree(directory, tmp_path / "pristine")
    found_steps, event = [], 0
    while True:
        shutil.rmtree(directory)
        shutil.copytree(pristine, directory)
        code = die_in(
            lambda: save_second(engine, directory, background=background), at_event=event, directory=directory
        )
        found, _ = store.newest_intact(directory)
        found_steps.append(store.step_of(found))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        event += 1
    assert event > 12, "too few moments to prove anything"
    assert found_steps == sorted(found_steps), "an older checkpoint after a newer one was whole"
    assert set(found_steps) == {1, 2}
    # The next save removes the remains of the last kill.
    save_second(engine, directory)
    assert not list(directory.glob("*.partial"))


def test_a_kill_in_the_middle_of_each_file_leaves_the_previous_checkpoint(saved):
    engine, directory = saved
    first = directory / "step_00000001"
    sizes = {path.name: path.stat().st_size for path in first.glob("*.pt")}
    assert len(sizes) == 2
    cut = []
    for limit in (min(sizes.values()) // 2, sum(sizes.values()) // 2):
        assert min(sizes.values()) // 2 == limit or limit > min(sizes.values())
        code = die_in(lambda: save_second(engine, directory), file_limit=limit, directory=directory)
        assert code == -signal.SIGXFSZ
        (partial,) = directory.glob("*.partial")
        cut.append({path.name for path in partial.iterdir() if path.stat().st_size < sizes[path.name]})
        assert store.newest_intact(directory) == (first, [])
    assert set().union(*cut) == set(sizes), "not every file was cut"


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a tmpfs with the given size in bytes."""
    mounted = []

    def mount(size: int) -> Path:
        place = tmp_path / "small_disk"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"cannot mount a tmpfs: {result.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


class HopefulWriter(CheckpointWriter):
    """A writer that does not check the free space before it writes."""

    def _bytes_needed(self) -> int:
        return 0


def test_a_disk_that_fills_up_while_saving(saved, small_disk):
    engine, directory = saved
    size = sum(path.stat().st_size for path in (directory / "step_00000001").iterdir())
    disk = small_disk(3 * size)
    shutil.copytree(directory / "step_00000001", disk / "step_00000001")
    for share in (0.1, 0.5, 0.9):
        subprocess.run(["mount", "-o", f"remount,size={int(size * (1 + share)) + 16384}", str(disk)], check=True)
        with pytest.raises(DataError, match=r"cannot write.*(free some space|check space)"):
            HopefulWriter(engine, disk, keep=2).save(2, {"samples_consumed": 16})
        assert store.newest_intact(disk) == (disk / "step_00000001", [])
    with pytest.raises(DataError, match=r"a checkpoint takes about .* GiB left; free some space or lower intervals"):
        CheckpointWriter(engine, disk, keep=2).save(2, {"samples_consumed": 16})
    subprocess.run(["mount", "-o", f"remount,size={3 * size}", str(disk)], check=True)
    CheckpointWriter(engine, disk, keep=2).save(2, {"samples_consumed": 16})
    assert store.newest_intact(disk) == (disk / "step_00000002", [])


def test_the_best_checkpoint_is_kept(saved):
    engine, directory = saved
    writer = CheckpointWriter(engine, directory, keep=2)
    for step, loss in enumerate((0.7, 0.3, None, 0.5, 0.4), start=2):
        writer.save(step, {"samples_consumed": 8 * step, "selection_loss": loss})
    names = [path.name for path in store.whole_checkpoints(directory)]
    # The checkpoint of step 1 comes from the fixture, with score 0.0. It is the best one.
    assert names == ["step_00000001", "step_00000005", "step_00000006"]
    shutil.rmtree(directory / "step_00000001")
    for step, loss in ((7, 0.2), (8, 0.9), (9, 0.8), (10, None)):
        writer.save(step, {"samples_consumed": 8 * step, "selection_loss": loss})
    names = [path.name for path in store.whole_checkpoints(directory)]
    assert names == ["step_00000007", "step_00000009", "step_00000010"]


def test_training_goes_on_while_a_checkpoint_is_published(saved, monkeypatch):
    """The background thread waits here. Meanwhile `save` has returned, and the checkpoint does not exist yet."""
    engine, directory = saved
    release, seal = threading.Event(), store._seal
    monkeypatch.setattr(store, "_seal", lambda *arguments: (release.wait(60), seal(*arguments)))
    writer = CheckpointWriter(engine, directory, keep=2, background=True)
    path = writer.save(2, {"samples_consumed": 16})
    assert not path.exists()
    release.set()
    writer.finish()
    assert store.newest_intact(directory) == (path, [])


def test_an_error_of_the_background_surfaces(saved, monkeypatch):
    engine, directory = saved

    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_seal", refuse)
    writer = CheckpointWriter(engine, directory, keep=2, background=True)
    writer.save(2, {"samples_consumed": 16})
    with pytest.raises(DataError, match="cannot write: No space left on device; check space"):
        writer.finish()
    assert store.newest_intact(directory)[0].name == "step_00000001"
