"""Starts ranks of this project's programs by fork, from a process that has already imported everything, in a second.

Run as a program, it reads one JSON request per line from standard input (`ranks`, `program`, `arguments`, `output`,
`variables`). It answers with the process ids of the ranks, and with their exit codes once all have ended. Ranks share
only the imports: every rank is a separate process with its own environment. There is no launcher, so if one rank is
lost, only the project's own code ends the others.
"""

from __future__ import annotations

import json
import os

# pyarrow's memory would begin a thread, and a process with threads cannot be forked. Loggers that DeepSpeed finds
# installed bring pyarrow with them.
os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import launching

_SCRIPTS = launching.REPOSITORY / "runs"


class Launch:
    """The ranks of one start, running or ended."""

    def __init__(self, server: ForkServer, pids: list[int], output: Path) -> None:
        self._server = server
        self.pids = pids
        self._output = output

    def running(self, rank: int) -> bool:
        try:
            state = Path(f"/proc/{self.pids[rank]}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state != "Z"

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        os.kill(self.pids[rank], number)

    def wait_for(self, condition: Callable[[], bool], seconds: float = launching.TIMEOUT_SECONDS) -> None:
        """Wait until a condition holds while the ranks run."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert any(map(self.running, range(len(self.pids)))), self.text()
            assert time.monotonic() < deadline, "timed out\n" + self.text()
            time.sleep(0.005)

    def wait(self, seconds: float = launching.TIMEOUT_SECONDS) -> list[int]:
        """Exit codes of the ranks, negative for a signal. Ranks that still run after the time-out are killed."""
        deadline = time.monotonic() + seconds
        while any(map(self.running, range(len(self.pids)))):
            if time.monotonic() > deadline:
                for rank in range(len(self.pids)):
                    self.kill(rank)
                self._server.answer()
                raise AssertionError("the ranks did not end\n" + self.text())
            time.sleep(0.02)
        return self._server.answer()

    def text(self) -> str:
        """What all ranks have written to standard output and standard error."""
        return self._output.read_text()


class ForkServer:
    """Client of the program below, which works in a directory."""

    def __init__(self, directory: Path = launching.REPOSITORY, **variables: str) -> None:
        command = [sys.executable, "-m", "tests.fork_server"]
        self._process = subprocess.Popen(
            command,
            cwd=directory,
            env=launching.environment(**variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.answer() == ["ready"]

    def answer(self) -> list[Any]:
        return json.loads(self._process.stdout.readline())

    def launch(
        self, arguments: list[str], output: Path, *, ranks: int = 2, program: str = "pretrain.py", **variables: str
    ) -> Launch:
        """Start ranks of a program, which print into the file ``output``.

        ``program`` is a script of `runs/`, ``bnb-ds``, or a module. With 0 ranks it is one process without the
        variables of a launcher.
        """
        request = {"ranks": ranks, "program": program, "arguments": arguments, "output": str(output)}
        request["variables"] = variables
        output.touch()  # so that it can be read at once
        self._process.stdin.write(json.dumps({**request, "port": launching.free_port()}) + "\n")
        self._process.stdin.flush()
        return Launch(self, self.answer(), output)

    def run(self, program: str, arguments: list[str], output: Path) -> tuple[int, str]:
        """Run one process without ranks to its end; return its exit code and output."""
        launch = self.launch(arguments, output, ranks=0, program=program)
        (code,) = launch.wait()
        return code, launch.text()

    def close(self) -> None:
        launching.kill(self._process)


def _serve() -> None:
    # DeepSpeed does these when it makes an engine. The first import alone takes half the time of a short run.
    import deepspeed.checkpoint.ds_to_universal
    import deepspeed.ops
    import deepspeed.runtime.zero.muon.original_muon
    import deepspeed.runtime.zero.stage3
    import deepspeed.runtime.zero.stage_1_and_2
    import torch.utils.tensorboard  # noqa: F401
    from transformers import BertTokenizerFast  # noqa: F401

    import bnb_ds.cli
    import bnb_ds.finetune.run
    import bnb_ds.pretrain.run  # noqa: F401

    deepspeed.ops.__compatible_ops__  # noqa: B018 - compiles a few programs
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked safely"
    print(json.dumps(["ready"]), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pids = [_fork(request, rank) for rank in range(max(request["ranks"], 1))]
        print(json.dumps(pids), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)


def _fork(request: dict[str, Any], rank: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    ranks = request["ranks"]
    if ranks:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(request["port"]))
    os.environ.update(request["variables"])
    os._exit(_run(request["program"], request["arguments"]))


def _call(program: str, arguments: list[str]) -> None:
    """Do what `python runs/PROGRAM`, `bnb-ds` or `python -m PROGRAM` does."""
    import importlib.metadata
    import runpy

    if program == "bnb-ds":
        sys.argv = [str(launching.BIN / program), *arguments]
        (entry,) = importlib.metadata.entry_points(group="console_scripts", name=program)
        sys.exit(entry.load()())
    if program.endswith(".py"):
        sys.argv = [str(_SCRIPTS / program), *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        sys.argv = [program, *arguments]
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def _run(program: str, arguments: list[str]) -> int:
    import traceback

    if os.environ.get("TEST_FP16_ON_CPU"):
        # DeepSpeed computes fp16 correctly on a CPU, but its accelerator class says that a CPU does not support it.
        from deepspeed.accelerator import get_accelerator

        get_accelerator().is_fp16_supported = lambda: True
    if "TEST_FILE_LIMIT_OF_RANK" in os.environ and os.environ["TEST_FILE_LIMIT_OF_RANK"] == os.environ.get("RANK"):
        # With this limit no file can grow, as on a full disk. Python ignores the signal that comes with it.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    # This signal makes the rank hang: its main thread sleeps while other threads go on.
    signal.signal(signal.SIGUSR2, lambda *received: time.sleep(1000))
    code = 1
    try:
        _call(program, arguments)
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    _serve()
