"""One launch at a time in an output directory.

The lock is a hard link, which only one process can create, on network storage too (where storage has no links, it is a
file that must be new). Its holder touches it now and then. A lock whose process is gone is taken over, and so is one of
another host or container that nobody has touched for long.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from bnb_ds.common.files import disk_errors
from bnb_ds.errors import ConfigError

LOCK_FILE = "lock.json"
_TOUCH_SECONDS = 15.0
#: a launch that was just killed may still be ending
_DYING_SECONDS = 3.0
#: a holder on another host that has not touched its lock for so long is gone
STALE_SECONDS = 600.0
#: likewise of a holder in another container of this host, whose processes cannot be seen, but whose file times can
_STALE_BESIDE_SECONDS = 60.0
#: what storage without hard links answers
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class RunLock:
    """Holds an output directory while its block runs.

    Args:
        directory: the run's ``output_dir``; it is made where it does not exist yet.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / LOCK_FILE
        self._released = threading.Event()

    def __enter__(self) -> RunLock:
        with disk_errors(self._directory):
            self._made = not self._directory.exists()
            self._own = {
                "host": socket.gethostname(),
                "process": os.getpid(),
                "started": _start_of(os.getpid()),
                "processes_of": _process_table(),
                "slurm": _slurm_job(),
                "token": uuid.uuid4().hex,
            }
            patience = time.monotonic() + _DYING_SECONDS
            while not self._create():
                try:
                    self._remove_stale()
                except ConfigError:
                    if time.monotonic() > patience:
                        raise
                    time.sleep(0.1)
        threading.Thread(target=self._touch, name="run lock", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._released.set()
        if _read(self._path) == self._own:
            self._path.unlink(missing_ok=True)
        if self._made:
            with suppress(OSError):  # not empty: the launch came so far as to write something
                self._directory.rmdir()

    def _create(self) -> bool:
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            descriptor, name = tempfile.mkstemp(prefix=f".{LOCK_FILE}.", suffix=".partial", dir=self._directory)
        except FileNotFoundError:  # another launch that made the directory for nothing has just removed it
            return False
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(self._own, file)
            _link(Path(name), self._path)
            # A file server may lose its answer: what counts is whose lock is there.
            return _read(self._path) == self._own
        finally:
            os.unlink(name)

    def _remove_stale(self) -> None:
        """Remove the lock of a holder that is gone.

        Raises:
            ConfigError: the holder lives, or may live on another host.
        """
        holder = _read(self._path)
        if holder is None:
            return  # released meanwhile
        silent = self._seconds_untouched()
        way_out = "wait until it ends, or stop it"
        same_host = holder.get("host") == self._own["host"]
        if same_host and holder.get("processes_of", self._own["processes_of"]) == self._own["processes_of"]:
            gone = _is_gone(holder.get("process", 0), holder.get("started"))
        else:
            longest = _STALE_BESIDE_SECONDS if same_host else STALE_SECONDS
            gone = silent > longest
            what = "container" if same_host else "host"
            way_out += f"; if that {what} is gone, start again in {longest:.0f} s or remove {self._path}"
        if not gone and not self._is_of_an_earlier_start(holder):
            who = f"process {holder.get('process')} on host {holder.get('host')}" if holder else "another launch"
            raise ConfigError(f"output_dir {self._directory}: {who} is writing here; {way_out}")
        # Renamed first: of several that find it stale, one removes it, and none removes the lock of another.
        taken = self._path.with_name(f".{LOCK_FILE}.{os.getpid()}.stale.partial")
        with suppress(FileNotFoundError):
            os.rename(self._path, taken)
            if _read(taken) != holder:  # another process was faster, and this is its new lock
                _link(taken, self._path)
            os.unlink(taken)

    def _is_of_an_earlier_start(self, holder: dict[str, Any]) -> bool:
        """Whether Slurm has started this job again since; it does so after a node has failed, on other nodes."""
        own, other = self._own["slurm"], holder.get("slurm")
        return bool(own) and bool(other) and own[0] == other[0] and own != other

    def _seconds_untouched(self) -> float:
        """By the clock of the file system, which all hosts share."""
        try:
            with tempfile.NamedTemporaryFile(dir=self._directory, prefix=f".{LOCK_FILE}.", suffix=".partial") as probe:
                return os.stat(probe.name).st_mtime - self._path.stat().st_mtime
        except FileNotFoundError:  # released meanwhile
            return 0.0

    def _touch(self) -> None:
        while not self._released.wait(_TOUCH_SECONDS):
            with suppress(OSError):
                os.utime(self._path)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, if that one is free; where storage has no links, a copy gets it."""
    try:
        os.link(source, target)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with suppress(FileExistsError), open(target, "x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))


def _read(path: Path) -> dict[str, Any] | None:
    """What a lock says of its holder; None where there is no lock, {} where it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _start_of(process: int) -> str | None:
    """When a process of this host started, as the kernel counts; a number is given to another process in time."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a killed process that nobody has waited for is gone
    except (OSError, IndexError):
        return None


def _is_gone(process: int, started: str | None) -> bool:
    found = _start_of(process)
    if found is None:
        with suppress(OSError, TypeError, OverflowError):
            try:
                os.kill(process, 0)  # sends nothing
            except PermissionError:
                return False  # it belongs to another user, and /proc may hide it
    return found != started


def _slurm_job() -> list[str] | None:
    """The number of the Slurm job that this process is of, and how often that job was started before."""
    job = os.environ.get("SLURM_JOB_ID")
    return None if job is None else [job, os.environ.get("SLURM_RESTART_COUNT", "0")]


def _process_table() -> str | None:
    """Names the table that process numbers belong to; a container has one of its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
