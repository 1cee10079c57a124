"""Running parts on the machines of a Dask cluster that share a file system.

The cluster decides where a part is made, and makes it again if a worker is lost; everything else is as on one machine:
the plan, the markers and the bytes. Each part has a process of its own (``python -m data_prep.jobs.cluster``), because
the workers of a cluster run tasks in threads, where a page cannot be given a limit of time. What that process needs
lies in a file of the output directory. That file is gone when the command ends, and a part in progress ends with it.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnb_ds.common.children import child_command
from bnb_ds.common.files import write_synced
from bnb_ds.errors import ConfigError, DataError, how_to_install
from data_prep.jobs import worker
from data_prep.jobs.job import Job, Options
from data_prep.jobs.progress import Counters, Progress
from data_prep.jobs.workspace import Workspace
from data_prep.sources.units import Source, Unit
from data_prep.tokenise.engines import EngineFault, candidates

_SECONDS_FOR_WORKERS = 60
_POLL_SECONDS = 1.0
_FUNCTIONS = {function.__name__: function for function in (worker.check_part, worker.index_part, worker.build_part)}


@dataclass(frozen=True)
class _Work:
    """What a process on another machine needs to make parts."""

    source: Source
    parts: list[list[Unit]]
    directory: Path
    options: Options
    engine: str | None


def run_on_cluster(function: Callable[[Job, int], None], job: Job, numbers: Sequence[int], progress: Progress) -> None:
    """As :func:`data_prep.jobs.pool.run_parts`, on the cluster whose scheduler ``job.options.scheduler`` names.

    Raises:
        ConfigError: Dask is not installed, or no scheduler or no worker answers.
        DataError: what a call raises (parts in progress are finished first), or workers were lost time and again.
    """
    if not numbers:
        return
    client = _connect(job.options.scheduler)
    import cloudpickle  # comes with Dask

    engine = None if job.engine is None else job.engine.name
    work = _Work(job.source, job.parts, job.workspace.directory.absolute(), job.options, engine)
    path = job.workspace.partial.absolute() / f"work-{uuid.uuid4().hex}.pickle"
    write_synced(path, cloudpickle.dumps(work))
    command = [str(path), function.__name__]
    try:
        _run_all(client, command, numbers, job, progress)
    finally:
        path.unlink(missing_ok=True)
        client.close()


def _connect(scheduler: str | None) -> Any:
    try:
        import distributed
    except ImportError:
        raise ConfigError(f"--executor dask: not installed; {how_to_install('cluster')}") from None
    try:
        client = distributed.Client(scheduler, timeout=_SECONDS_FOR_WORKERS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--scheduler {scheduler}: no Dask scheduler answers there ({reason})") from None
    try:
        client.wait_for_workers(1, timeout=_SECONDS_FOR_WORKERS)
    except TimeoutError:
        client.close()
        raise ConfigError(f"--scheduler {scheduler}: has no workers; start `dask worker {scheduler}`") from None
    return client


def _run_all(client: Any, command: list[str], numbers: Sequence[int], job: Job, progress: Progress) -> None:
    """Keep every thread of the cluster busy, with one part more in waiting; after a failure no part is begun."""
    import distributed

    waiting, running, failures = list(reversed(numbers)), {}, {}
    completed = distributed.as_completed(loop=client.loop)
    while waiting or running:
        width = 2 * max(sum(client.nthreads().values()), 1)
        while waiting and not failures and len(running) < width:
            number = waiting.pop()
            future = client.submit(_in_a_process, [*command, str(number)], os.getcwd(), pure=False)
            running[future] = number
            completed.add(future)
        if not running:
            break
        future = next(completed)
        number = running.pop(future)
        error = future.exception() if future.status == "error" else None
        if error is None:
            counts, error = pickle.loads(future.result())
            job.counters.add(**counts)
        if error is not None:
            failures[number] = error
        progress.refresh()
    if failures:
        error = failures[min(failures)]
        if isinstance(error, distributed.KilledWorker):
            raise DataError(
                f"{job.workspace.directory}: workers were lost several times at part {min(failures)} (out of memory?); "
                "the finished parts are kept: run the same command again"
            ) from None
        raise error


def _in_a_process(command: list[str], directory: str) -> bytes:
    """Run on a worker of the cluster: the pickled counts and error of a part, made by a process that dies with it."""
    command = child_command("data_prep.jobs.cluster", *command)
    found = subprocess.run(command, cwd=directory, capture_output=True, check=False)
    if found.returncode:
        lines = found.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {found.returncode}"]
        return pickle.dumps(({}, DataError(f"part {command[-1]}: its process ended: {lines[-1]}")))
    sys.stderr.write(found.stderr.decode("utf-8", "replace"))
    return found.stdout


def make_part(path: Path, function: str, number: int) -> tuple[dict[str, int], Exception | None]:
    """Make one part in this process.

    Args:
        path: of the pickled work.
        function: name of one in :mod:`data_prep.jobs.worker`.
        number: of the part.

    Returns:
        What was counted, and what went wrong.
    """
    from bnb_ds.data.tokenization import describe_tokenizer, load_tokenizer

    work: _Work = pickle.loads(path.read_bytes())
    counters = Counters()
    workspace = Workspace(work.directory)  # locked by the process that plans
    tokenizer = load_tokenizer(workspace.partial / "tokenizer")
    job = Job(work.source, work.parts, workspace, describe_tokenizer(tokenizer), work.options, counters)
    try:
        if work.engine is not None:
            job.engine = next(candidates(tokenizer, work.engine))
            if job.engine.name != work.engine:
                raise EngineFault("cannot be used on a worker of the cluster")
        _FUNCTIONS[function](job, number)
    except (DataError, ConfigError, EngineFault) as error:
        return counters.read(), error
    return counters.read(), None


def end_without(path: Path) -> None:
    """End this process once a file is gone: the command that wanted the part has been ended."""
    while path.exists():
        time.sleep(_POLL_SECONDS)
    os._exit(1)


def main() -> None:
    """``python -m data_prep.jobs.cluster WORK FUNCTION NUMBER``; the result goes to standard output."""
    threading.Thread(target=end_without, args=(Path(sys.argv[1]),), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    output, sys.stdout = sys.stdout.buffer, sys.stderr
    found = make_part(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    output.write(pickle.dumps(found))
    output.flush()


if __name__ == "__main__":
    main()
