"""Every epoch reads each sample once, in an order that does not depend on ranks, micro batches or interruptions."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from bnb_ds.data.loader import StepLoader
from bnb_ds.data.streams import SampleStream
from bnb_ds.errors import DataError
from bnb_ds.shards import pread as shard_reader


@dataclass
class RecordedSamples:
    """A source whose batches hold the requested ids and epochs."""

    count: int

    def lengths(self, sample_ids):
        return sample_ids * 7 % 5

    def __len__(self) -> int:
        return self.count

    def stream(self, seed):
        return SampleStream(self.count, seed)

    def batch(self, sample_ids, epochs):
        return list(zip(sample_ids.tolist(), epochs.tolist(), strict=True))


def read(source, *, micro_batch, accumulation_steps, world_size, position, num_steps, seed=3):
    """Samples of each step over all ranks, in the order of the global batch."""
    loaders = [
        StepLoader(
            source,
            seed=seed,
            micro_batch=micro_batch,
            accumulation_steps=accumulation_steps,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    steps = []
    for by_rank in zip(*(loader.steps(position, num_steps) for loader in loaders), strict=True):
        steps.append([sample for micro in zip(*by_rank, strict=True) for batch in micro for sample in batch])
    return steps


def test_every_epoch_reads_every_sample_once_in_its_own_order():
    ids, epochs = SampleStream(101, seed=1).read(0, 303)
    orders = [ids[epochs == epoch].tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(101)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert SampleStream(101, seed=2).read(0, 101)[0].tolist() != orders[0]


def test_the_stream_can_be_entered_anywhere():
    stream = SampleStream(50, seed=1)
    whole = np.stack(stream.read(0, 170))
    assert (np.stack(stream.read(43, 100)) == whole[:, 43:143]).all()


@pytest.mark.parametrize(
    ("micro_batch", "accumulation_steps", "world_size"), [(4, 1, 3), (2, 2, 3), (1, 6, 2), (12, 1, 1), (3, 4, 1)]
)
def test_the_global_batches_do_not_depend_on_how_they_are_cut(micro_batch, accumulation_steps, world_size):
    source = RecordedSamples(37)
    plain = read(source, micro_batch=12, accumulation_steps=1, world_size=1, position=0, num_steps=7)
    cut = read(
        source,
        micro_batch=micro_batch,
        accumulation_steps=accumulation_steps,
        world_size=world_size,
        position=0,
        num_steps=7,
    )
    assert cut == plain


def test_a_micro_batch_holds_samples_of_about_one_length():
    """Within a step the samples are dealt out by length. This does not change which samples a step reads."""
    source, settings = RecordedSamples(400), {"micro_batch": 4, "accumulation_steps": 5, "world_size": 2}
    (step,) = read(source, **settings, position=80, num_steps=1)
    expected, epochs = SampleStream(400, seed=3).read(80, 40)
    assert sorted(step) == sorted(zip(expected.tolist(), epochs.tolist(), strict=True))
    lengths = source.lengths(np.array([sample for sample, _ in step]))
    assert (np.diff(lengths) >= 0).all()
    assert lengths[0] < lengths[-1]


def test_a_resume_reads_on_where_the_run_stopped():
    source = RecordedSamples(37)
    settings = {"micro_batch": 2, "accumulation_steps": 2, "world_size": 2}
    whole = read(source, **settings, position=0, num_steps=9)
    assert read(source, **settings, position=5 * 8, num_steps=4) == whole[5:]


def test_no_steps_is_no_work():
    source = RecordedSamples(5)
    loader = StepLoader(source, seed=0, micro_batch=1, accumulation_steps=1, rank=0, world_size=1)
    assert list(loader.steps(0, 0)) == []


def test_errors_of_the_background_thread_surface():
    class BrokenSamples(RecordedSamples):
        def batch(self, sample_ids, epochs):
            raise OSError("shard train-00001.tokens.npy cannot be read")

    loader = StepLoader(BrokenSamples(5), seed=0, micro_batch=1, accumulation_steps=1, rank=0, world_size=1)
    with pytest.raises(OSError, match="train-00001"):
        list(loader.steps(0, 2))


def test_batches_are_pinned_where_asked():
    class Batch:
        def __init__(self, is_pinned=False):
            self.is_pinned = is_pinned

        def pinned(self):
            return Batch(True)

    class Samples(RecordedSamples):
        def batch(self, sample_ids, epochs):
            return Batch()

    for device in ("cpu", "cuda"):
        settings = {"micro_batch": 1, "accumulation_steps": 2, "rank": 0, "world_size": 1}
        batches = StepLoader(Samples(5), seed=0, **settings, device=torch.device(device)).step(0)
        assert [batch.is_pinned for batch in batches] == [device == "cuda"] * 2


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_token_budgets_change_how_a_step_is_cut_and_nothing_else(world_size):
    source = RecordedSamples(100)
    source.lengths = lambda sample_ids: sample_ids % 17 + 1
    settings = {"micro_batch": 12 // world_size, "accumulation_steps": 2, "world_size": world_size}
    loaders = [StepLoader(source, seed=3, rank=r, micro_batch_tokens=40, **settings) for r in range(world_size)]
    stream = SampleStream(100, seed=3)
    for step in range(6):
        by_rank = [loader.step(step * 24) for loader in loaders]
        assert len({len(batches) for batches in by_rank}) == 1
        micro_batches = [batch for batches in by_rank for batch in batches]
        assert all(sum(sample % 17 + 1 for sample, _ in batch) <= 40 for batch in micro_batches)
        assert all(micro_batches)
        expected = zip(*(x.tolist() for x in stream.read(step * 24, 24)), strict=True)
        assert sorted(sample for batch in micro_batches for sample in batch) == sorted(expected)


def test_steps_are_the_same_with_any_number_of_workers():
    settings = {"micro_batch": 2, "accumulation_steps": 2, "rank": 1, "world_size": 2}
    plain = list(StepLoader(RecordedSamples(37), seed=3, **settings).steps(8, 9))
    many = StepLoader(RecordedSamples(37), seed=3, workers=3, prefetch_steps=4, **settings)
    assert list(many.steps(8, 9)) == plain


def test_a_run_of_any_age_resumes_at_once():
    """A resumed run reads no consumed sample again, and starts equally fast at any position."""
    source = RecordedSamples(10_000_000)
    asked = []
    source.batch = lambda sample_ids, epochs: asked.append((sample_ids.size, set(epochs.tolist())))
    loader = StepLoader(source, seed=3, micro_batch=4, accumulation_steps=1, rank=0, world_size=1)
    next(loader.steps(123 * 10_000_000 + 17, 1))
    assert asked == [(4, {123})]


def test_samples_that_do_not_come_in_time_are_an_error_that_names_the_file(tmp_path, monkeypatch):
    go_on = threading.Event()

    class SlowSamples(RecordedSamples):
        def batch(self, sample_ids, epochs):
            monkeypatch.setitem(shard_reader._in_flight, threading.get_ident(), tmp_path / "train-00007.tokens.npy")
            go_on.wait(30)

    settings = {"micro_batch": 1, "accumulation_steps": 1, "rank": 0, "world_size": 1, "timeout_seconds": 0.1}
    with pytest.raises(DataError, match=r"no data for 0\.1 s: waiting for .*train-00007\.tokens\.npy; mend"):
        next(StepLoader(SlowSamples(5), seed=0, **settings).steps(0, 1))
    go_on.set()
    monkeypatch.setattr(shard_reader, "_in_flight", {})
    go_on.clear()
    monkeypatch.setattr(RecordedSamples, "batch", lambda *arguments: go_on.wait(30))
    with pytest.raises(DataError, match="no file is being read, so making the samples takes that long"):
        next(StepLoader(RecordedSamples(5), seed=0, **settings).steps(0, 1))
    go_on.set()
