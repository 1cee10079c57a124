"""Makes items ahead of their use in background threads, in order, with a bounded number of items in memory."""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

from bnb_ds.errors import DataError

Item = TypeVar("Item")
Made = TypeVar("Made")

# A thread that is still busy after this time, for example in a read that hangs, is left running.
_JOIN_SECONDS = 1.0


def prefetched(
    make: Callable[[Item], Made],
    items: Iterable[Item],
    *,
    workers: int,
    ahead: int,
    timeout_seconds: float,
    describe_wait: Callable[[], str],
) -> Iterator[Made]:
    """``make(item)`` for every item, in order. At most ``ahead`` results wait or are being made at any time.

    Args:
        make: called in background threads. If it raises, the error is raised here in place of the result.
        items: its arguments, one for each result.
        workers: number of threads.
        ahead: at least 1.
        timeout_seconds: longest wait for a result.
        describe_wait: called after a time-out; it says what the thread is waiting for.

    Raises:
        DataError: a result took longer than ``timeout_seconds``.
    """
    # The interpreter joins threads of concurrent.futures when it exits, so one that hangs in a read would keep the
    # process alive for ever. These threads are daemons, which it does not join.
    tasks: queue.SimpleQueue[tuple[Item, Future[Made]] | None] = queue.SimpleQueue()
    threads = [threading.Thread(target=_work, args=(make, tasks), name="loader", daemon=True) for _ in range(workers)]
    waiting: deque[Future[Made]] = deque()

    def submit(item: Item) -> None:
        waiting.append(Future())
        tasks.put((item, waiting[-1]))

    for thread in threads:
        thread.start()
    try:
        remaining = iter(items)
        for item in itertools.islice(remaining, ahead):
            submit(item)
        while waiting:
            made = _result(waiting[0], timeout_seconds, describe_wait)
            waiting.popleft()
            for item in itertools.islice(remaining, 1):
                submit(item)
            yield made
    finally:
        for future in waiting:
            future.cancel()
        for _ in threads:
            tasks.put(None)
        for thread in threads:
            thread.join(_JOIN_SECONDS)


def _result(future: Future[Made], timeout_seconds: float, describe_wait: Callable[[], str]) -> Made:
    try:
        return future.result(timeout_seconds)
    except FutureTimeout:
        if future.done():
            raise  # `make` itself has raised a TimeoutError
        raise DataError(
            f"no data for {timeout_seconds:g} s: {describe_wait()}; mend the storage or raise loader.timeout_seconds,"
            " then --resume auto"
        ) from None


def _work(make: Callable[[Item], Made], tasks: queue.SimpleQueue[tuple[Item, Future[Made]] | None]) -> None:
    while (task := tasks.get()) is not None:
        item, future = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(make(item))
        except BaseException as error:
            future.set_exception(error)
