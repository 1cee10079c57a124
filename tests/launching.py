"""Runs the real programs in tests, with free ports and time-outs, and leaves no processes behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
WITHOUT_MLFLOW = Path(__file__).resolve().parent / "without_mlflow"
#: longest wait of a test; a busy machine needs more
TIMEOUT_SECONDS = int(os.environ.get("TEST_TIMEOUT_SECONDS", "240"))
#: variables that a launcher sets for its ranks; an earlier test in this process may have set them too
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: first lines of a program that imports only some modules of the package. They skip the package's `__init__`, which
#: takes seconds to register the model with transformers.
LIGHT = f"""
import sys, types
sys.modules["bnb_ds"] = types.ModuleType("bnb_ds")
sys.modules["bnb_ds"].__path__ = [{str(REPOSITORY / "bnb_ds")!r}]
"""


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with the tools of its virtual environment first on PATH, on the CPU, one thread.

    Programs find no MLflow (`tests/without_mlflow`).
    """
    inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    return {
        **inherited,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        **changes,
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(WITHOUT_MLFLOW), changes.get("PYTHONPATH", os.environ.get("PYTHONPATH"))))
        ),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launcher(ranks: int) -> list[str]:
    """The deepspeed launcher for a number of ranks on this host."""
    return [str(BIN / "deepspeed"), "--num_gpus", str(ranks), "--master_port", str(free_port())]


def run(command: Sequence[str], *, timeout: float = TIMEOUT_SECONDS, **options) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, by default in the repository. A time-out kills its whole process group."""
    process = start(command, **options)
    try:
        output, errors = process.communicate(timeout=timeout)
    except BaseException:
        kill(process)
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def start(
    command: Sequence[str], *, env: dict[str, str] | None = None, directory: Path = REPOSITORY
) -> subprocess.Popen[str]:
    """Start a command in a process group of its own."""
    return subprocess.Popen(
        list(command),
        cwd=directory,
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL a command and all processes that it started. The launcher's ranks are in separate process groups."""
    for pid in [*_descendants(process.pid), process.pid]:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until a condition holds while a process runs."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def find_ranks(launcher_pid: int) -> list[int]:
    """Processes of `runs/pretrain.py` below a launcher."""
    found = []
    for pid in _descendants(launcher_pid):
        with contextlib.suppress(OSError):
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            is_program = any(argument.endswith(b"runs/pretrain.py") for argument in arguments)
            if is_program and b"RANK=" in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return [pid for pid in found if b"deepspeed.launcher" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _descendants(pid: int) -> list[int]:
    children = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children.extend(int(child) for child in task.read_text().split())
    return [*children, *(grandchild for child in children for grandchild in _descendants(child))]
