"""Which samples are read when: every epoch once, and independent of ranks, micro batch and interruptions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from bnb_ds.loader import SampleStream, StepLoader


@dataclass
class RecordedSamples:
    """A source whose batches are the ids and epochs that were asked for."""

    count: int

    def lengths(self, sample_ids):
        return sample_ids * 7 % 5

    def __len__(self) -> int:
        return self.count

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
    """Within a step the samples are dealt out by length; which samples a step reads does not change."""
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

    for pin_memory in (False, True):
        settings = {"micro_batch": 1, "accumulation_steps": 2, "rank": 0, "world_size": 1, "pin_memory": pin_memory}
        batches = StepLoader(Samples(5), seed=0, **settings).step(0)
        assert [batch.is_pinned for batch in batches] == [pin_memory] * 2
