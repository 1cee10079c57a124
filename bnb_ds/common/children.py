"""Child processes that end with the process that started them, even if that one is killed.

``python -m bnb_ds.common.children PARENT MODULE [ARGUMENT ...]`` runs a module so.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

_PR_SET_PDEATHSIG = 1
#: how long a launcher and its ranks may take to save a checkpoint and end
_ENDING_SECONDS = 60.0


def child_command(module: str, *arguments: str) -> list[str]:
    """The command of a child of this process that runs a module of Python."""
    return [sys.executable, "-m", "bnb_ds.common.children", str(os.getpid()), module, *arguments]


def end_with_parent(parent: int) -> None:
    """Have this process killed when the process ``parent``, which started it, ends. Ctrl-C is left to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before the line above
        os._exit(128 + signal.SIGKILL)


def without_launcher() -> dict[str, str]:
    """This process's environment without what a launcher has set for it: a child is no rank of this process's job."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in names}


@contextmanager
def ctrl_c_held_back() -> Iterator[None]:
    """Start children in this block: they never see Ctrl-C, not even while they import. This process gets it afterwards.

    A child that Ctrl-C meets in its imports would print a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_in_session(command: Sequence[str]) -> int:
    """Run a command in a session of its own, which Ctrl-C does not reach; return its exit code.

    It is no rank of this process's job (`without_launcher`).
    If this process is asked to end meanwhile, all processes of the session get SIGTERM, and time to end in order.
    """
    process = subprocess.Popen(command, env=without_launcher(), start_new_session=True)
    try:
        return process.wait()
    except BaseException:
        _end_session(process)
        raise


def _end_session(leader: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _ENDING_SECONDS
    with suppress(ProcessLookupError):  # the last process has ended
        os.killpg(leader.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            leader.poll()
            os.killpg(leader.pid, 0)
            time.sleep(0.05)
        os.killpg(leader.pid, signal.SIGKILL)


def main() -> None:
    """Run the module that the command line names."""
    end_with_parent(int(sys.argv[1]))
    module, sys.argv = sys.argv[2], sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
