"""Decode the requests of many clients in common batches, after a short wait.

One coroutine takes texts in fair turns until the oldest has waited ``max_wait_seconds`` or a batch is full. One thread
runs the model. While it runs, the queue fills for the next batch. A text whose request has ended is dropped: the work
of a request stops at the next batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bnb_ds.common.memory import return_freed_memory
from bnb_ds.decoding.batching import source_costs
from bnb_ds.decoding.lengths import num_hypotheses
from bnb_ds.decoding.options import CONSTRAINT_BEAM, DecodeOptions
from bnb_ds.generate.pipeline import BnbPipeline, Generated
from bnb_ds.model.backbones.entries import positions_of
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.serve.limits import ServiceLimits
from bnb_ds.serve.metrics import Metrics
from bnb_ds.serve.slot_reading import SlotReading, read_slots
from bnb_ds.serve.turns import Turns

#: batches of many sizes leave holes in the C heap, which are given back now and then
_BATCHES_BETWEEN_TRIMS = 100


class Overloaded(Exception):
    """More texts are pending than the limits allow."""


@dataclass(frozen=True)
class Work:
    """What is asked of a text. Texts with equal work are decoded together."""

    options: DecodeOptions
    with_scores: bool = False
    with_slots: bool = False


@dataclass(frozen=True)
class Answer:
    """The output of one text, how its slots were read (if asked for), the texts of its batch, and times in seconds."""

    generated: Generated
    slots: list[SlotReading] | None
    batch_size: int
    queue_seconds: float
    model_seconds: float


@dataclass(frozen=True, eq=False)
class _Item:
    """One text that waits for its output."""

    source: list[int]
    is_truncated: bool
    work: Work
    client: tuple[str, Hashable]
    cost: int
    future: asyncio.Future[Answer]
    arrived: float


class Batcher:
    """The queue and the two workers, for the event loop that calls `start`."""

    def __init__(self, pipeline: BnbPipeline, metrics: Metrics, limits: ServiceLimits):
        self._pipeline = pipeline
        self._metrics = metrics
        self._limits = limits
        self._num_pending = 0
        self._num_batches = 0  # counted in the model's thread
        self._turns = Turns()
        self._has_changed = asyncio.Event()
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._tokenizer_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._task: asyncio.Task[None] | None = None

    @property
    def num_waiting(self) -> int:
        """Texts that wait for a batch."""
        return len(self._turns)

    @property
    def has_room(self) -> bool:
        """Whether a request of one text would be accepted."""
        return self._num_pending < self._limits.max_pending

    def start(self) -> None:
        """Start decoding."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Stop the workers. Requests have ended by now; at most one batch is still being decoded for nobody."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._model_thread.shutdown(wait=False, cancel_futures=True)
        self._tokenizer_thread.shutdown(wait=False, cancel_futures=True)

    @contextlib.asynccontextmanager
    async def accepted(
        self, texts: Sequence[str], work: Work, client: tuple[str, Hashable]
    ) -> AsyncIterator[list[asyncio.Future[Answer]]]:
        """Queue these texts, and yield the futures of their answers. On exit, unfinished ones are dropped.

        Args:
            texts: at least one.
            work: what is asked of each.
            client: an address and one of its connections, between which turns are fair.

        Raises:
            Overloaded: too many texts are pending; no text of this request was accepted.
        """
        if self._num_pending + len(texts) > self._limits.max_pending:
            raise Overloaded
        self._count(len(texts))
        items: list[_Item] = []
        try:
            loop = asyncio.get_running_loop()
            sources, cuts = await loop.run_in_executor(self._tokenizer_thread, self._pipeline.encode, list(texts))
            now = time.monotonic()
            costs = text_costs([len(source) for source in sources], work, self._pipeline.engine.config)
            for source, cut, cost in zip(sources, cuts, costs, strict=True):
                items.append(_Item(source, cut, work, client, cost, loop.create_future(), now))
                self._turns.add(items[-1])
            self._changed()
            yield [item.future for item in items]
        finally:
            for item in items:
                self._turns.discard(item)
                if item.future.done() and not item.future.cancelled():
                    item.future.exception()  # mark it as seen
                item.future.cancel()
            self._count(-len(texts))
            self._changed()

    def _count(self, change: int) -> None:
        self._num_pending += change
        self._metrics.pending.set(self._num_pending)

    def _changed(self) -> None:
        self._metrics.queue_length.set(len(self._turns))
        self._has_changed.set()

    async def _work(self) -> None:
        while True:
            self._has_changed.clear()
            if not len(self._turns):
                await self._has_changed.wait()
                continue
            left = self._turns.oldest.arrived + self._limits.max_wait_seconds - time.monotonic()
            if left > 0 and self._turns.cost < self._limits.token_budget:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._has_changed.wait(), left)
                continue
            batch = self._turns.take(self._limits.token_budget)
            self._metrics.queue_length.set(len(self._turns))
            await self._decode(batch)

    async def _decode(self, items: list[_Item]) -> None:
        start = time.monotonic()
        self._metrics.batch_items.observe(len(items))
        self._metrics.batch_cost.observe(sum(item.cost for item in items))
        for item in items:
            self._metrics.queue_seconds.observe(start - item.arrived)
        loop = asyncio.get_running_loop()
        try:
            outputs = await loop.run_in_executor(self._model_thread, self._run, items)
        except Exception as error:
            if len(items) > 1:  # one of them may have caused it, and the others must not suffer
                logging.getLogger(__name__).warning("a batch of %d failed; each is tried alone", len(items))
                for item in items:
                    if not item.future.done():
                        await self._decode([item])
            elif not items[0].future.done():
                items[0].future.set_exception(error)
            return
        seconds = time.monotonic() - start
        self._metrics.model_seconds.observe(seconds)
        for item, (output, slots) in zip(items, outputs, strict=True):
            self._metrics.source_tokens.inc(output.num_source_tokens)
            self._metrics.output_tokens.inc(len(output.tokens))
            if not item.future.done():
                item.future.set_result(Answer(output, slots, len(items), start - item.arrived, seconds))

    def _run(self, items: list[_Item]) -> list[tuple[Generated, list[SlotReading] | None]]:
        work = items[0].work
        sources, cuts = [item.source for item in items], [item.is_truncated for item in items]
        outputs = self._pipeline.from_sources(sources, cuts, work.options, with_scores=work.with_scores)
        self._num_batches += 1
        if self._num_batches % _BATCHES_BETWEEN_TRIMS == 0:
            return_freed_memory()
        if not work.with_slots:
            return [(output, None) for output in outputs]
        return [
            (output, read_slots(self._pipeline, source, output.tokens, work.options))
            for source, output in zip(sources, outputs, strict=True)
        ]


def text_costs(num_tokens: Sequence[int], work: Work, config: BnbConfig) -> list[int]:
    """What each text adds to a batch, at least 1: its source tokens, and its slots for each hypothesis and pass."""
    lengths = [max(number, 1) for number in num_tokens]
    if config.decoder_length == "padded":
        lengths = [positions_of(config.encoder)] * len(lengths)
    # Any output may break a limit, and then it is searched.
    width = max(num_hypotheses(lengths, config, work.options), CONSTRAINT_BEAM if work.options.has_limits else 1)
    width *= 1 + work.options.refinement
    return (source_costs(lengths, config, width) * (2 if work.with_slots else 1)).tolist()
