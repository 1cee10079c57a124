"""Decode the requests of many clients in common batches, after a short wait.

One coroutine takes items from a queue until the oldest has waited ``max_wait_seconds`` or the batch has
``token_budget`` tokens. One thread runs the model. While it runs, the queue fills for the next batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.generate.pipeline import BnbPipeline, Generated
from bnb_ds.serve.metrics import Metrics


class Overloaded(Exception):
    """More texts are pending than the limits allow."""


@dataclass(frozen=True, eq=False)
class _Item:
    """One text that waits for its output."""

    source: list[int]
    is_truncated: bool
    options: DecodeOptions
    with_scores: bool
    future: asyncio.Future[Generated]
    arrived: float


class Batcher:
    """The queue and the two workers, for the event loop that calls `start`.

    Args:
        pipeline: runs the model.
        metrics: counters of the service.
        max_wait_seconds: how long the first item of a batch waits for others.
        token_budget: a batch is full when it has this many source tokens.
        max_pending: most items that wait or are being decoded; further requests are refused.
    """

    def __init__(
        self,
        pipeline: BnbPipeline,
        metrics: Metrics,
        *,
        max_wait_seconds: float,
        token_budget: int,
        max_pending: int,
    ):
        self._pipeline = pipeline
        self._metrics = metrics
        self._max_wait_seconds = max_wait_seconds
        self._token_budget = token_budget
        self._max_pending = max_pending
        self._num_pending = 0
        self._queue: asyncio.Queue[_Item] = asyncio.Queue()
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._tokenizer_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start decoding."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Wait until all pending items are done, then stop the workers."""
        while self._num_pending:
            await asyncio.sleep(0.01)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._model_thread.shutdown()
        self._tokenizer_thread.shutdown()

    async def submit(self, texts: Sequence[str], options: DecodeOptions, *, with_scores: bool) -> list[Generated]:
        """Decode these texts, and return the outputs in their order.

        Raises:
            Overloaded: too many texts are pending; no text of this request was accepted.
        """
        if self._num_pending + len(texts) > self._max_pending:
            raise Overloaded
        self._count(len(texts))
        try:
            loop = asyncio.get_running_loop()
            sources, cuts = await loop.run_in_executor(self._tokenizer_thread, self._pipeline.encode, list(texts))
            now = time.monotonic()
            items = [
                _Item(source, cut, options, with_scores, loop.create_future(), now)
                for source, cut in zip(sources, cuts, strict=True)
            ]
            for item in items:
                self._queue.put_nowait(item)
            # If a client disconnects or times out, this is cancelled, and so are the futures; their items are skipped.
            return await asyncio.gather(*(item.future for item in items))
        finally:
            self._count(-len(texts))

    def _count(self, change: int) -> None:
        self._num_pending += change
        self._metrics.pending.set(self._num_pending)

    async def _work(self) -> None:
        while True:
            batch = await self._gather()
            groups: dict[tuple[DecodeOptions, bool], list[_Item]] = defaultdict(list)
            for item in batch:
                if not item.future.done():
                    groups[item.options, item.with_scores].append(item)
            for group in groups.values():
                await self._decode(group)

    async def _gather(self) -> list[_Item]:
        batch = [await self._queue.get()]
        num_tokens = len(batch[0].source)
        until = batch[0].arrived + self._max_wait_seconds
        while num_tokens < self._token_budget:
            try:
                item = self._queue.get_nowait()
            except asyncio.QueueEmpty:
                left = until - time.monotonic()
                if left <= 0:
                    break
                try:
                    item = await asyncio.wait_for(self._queue.get(), left)
                except asyncio.TimeoutError:
                    break
            batch.append(item)
            num_tokens += len(item.source)
        return batch

    async def _decode(self, items: list[_Item]) -> None:
        start = time.monotonic()
        self._metrics.batch_items.observe(len(items))
        for item in items:
            self._metrics.queue_seconds.observe(start - item.arrived)
        try:
            outputs = await asyncio.get_running_loop().run_in_executor(self._model_thread, self._run, items)
        except Exception as error:  # each waiting request reports it, and the next batch is tried
            for item in items:
                if not item.future.done():
                    item.future.set_exception(error)
            return
        self._metrics.model_seconds.observe(time.monotonic() - start)
        for item, output in zip(items, outputs, strict=True):
            self._metrics.source_tokens.inc(output.num_source_tokens)
            self._metrics.output_tokens.inc(len(output.tokens))
            if not item.future.done():
                item.future.set_result(output)

    def _run(self, items: list[_Item]) -> list[Generated]:
        sources, cuts = [item.source for item in items], [item.is_truncated for item in items]
        return self._pipeline.from_sources(sources, cuts, items[0].options, with_scores=items[0].with_scores)
