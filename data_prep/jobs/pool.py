"""Running parts in this process or in several."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

import pyarrow as pa

from bnb_ds.common.children import end_with_parent
from bnb_ds.common.memory import keep_freed_memory
from bnb_ds.errors import DataError
from data_prep.jobs.job import Job
from data_prep.jobs.progress import Progress

_REFRESH_SECONDS = 0.5

_work: tuple[Callable[[Job, int], None], Job] | None = None  # of a worker process, inherited when it was forked


def run_parts(function: Callable[[Job, int], None], job: Job, numbers: Sequence[int], progress: Progress) -> None:
    """Call ``function(job, number)`` for every part, in ``job.options.workers`` processes.

    Raises:
        DataError: what a call raises (parts in progress are finished first), or a worker was killed. Ctrl-C and SIGTERM
            do not wait for parts in progress.
    """
    global _work
    keep_freed_memory()
    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own gives pages back and asks for them again
    workers = min(job.options.workers, len(numbers))
    if workers <= 1:
        for number in numbers:
            function(job, number)
            progress.refresh()
        return
    _work = (function, job)  # fork hands it over: no copy of the tokenizer, no second import
    gc.freeze()  # a collection in a worker would visit, and thereby copy, all that is shared with this process
    try:
        with ProcessPoolExecutor(
            workers, multiprocessing.get_context("fork"), _start_worker, (os.getpid(),)
        ) as executor:
            _wait([executor.submit(_run, number) for number in numbers], progress)
    except BrokenProcessPool:
        raise DataError(
            f"{job.workspace.directory}: a worker was killed (out of memory?); the finished parts are kept: "
            "run the same command again, perhaps with fewer --workers"
        ) from None
    finally:
        gc.unfreeze()
        _work = None


def _wait(futures: list[Future[None]], progress: Progress) -> None:
    waiting = set(futures)
    try:
        while waiting:
            done, waiting = wait(waiting, timeout=_REFRESH_SECONDS, return_when=FIRST_COMPLETED)
            progress.refresh()
            for future in futures:  # in order, so that of several errors the first in the corpus is reported
                if future in done:
                    future.result()
    except Exception:
        for future in futures:
            future.cancel()
        raise
    except BaseException:  # a signal
        for process in multiprocessing.active_children():
            process.kill()
        raise


def _start_worker(parent: int) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # not what the parent does then
    # A worker must not outlive a killed parent: it would go on writing beside the next run.
    end_with_parent(parent)


def _run(number: int) -> None:
    function, job = _work
    function(job, number)
