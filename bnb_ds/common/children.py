"""Child processes that end with the process that started them, even if that one is killed.

``python -m bnb_ds.common.children PARENT MODULE [ARGUMENT ...]`` runs a module so.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def child_command(module: str, *arguments: str) -> list[str]:
    """The command of a child of this process that runs a module of Python."""
    return [sys.executable, "-m", "bnb_ds.common.children", str(os.getpid()), module, *arguments]


def end_with_parent(parent: int) -> None:
    """Have this process killed when the process ``parent``, which started it, ends. Ctrl-C is left to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before the line above
        os._exit(128 + signal.SIGKILL)


def main() -> None:
    """Run the module that the command line names."""
    end_with_parent(int(sys.argv[1]))
    module, sys.argv = sys.argv[2], sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
