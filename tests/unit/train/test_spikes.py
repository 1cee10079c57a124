from __future__ import annotations

from bnb_ds.train.spikes import SpikeDetector


def feed(detector: SpikeDetector, losses: list[float]) -> list[bool]:
    spikes = []
    for loss in losses:
        spikes.append(detector.is_spike(loss))
        if not spikes[-1]:
            detector.accept(loss)
    return spikes


def test_a_spike_is_a_jump_over_the_median_of_the_recent_losses():
    detector = SpikeDetector(factor=2, window_steps=3)
    assert feed(detector, [9, 1, 1, 1.9, 2.1, 1, 5]) == [False, False, False, False, True, False, True]
    assert detector.skipped == 2


def test_nothing_is_a_spike_before_the_window_is_full():
    assert not any(feed(SpikeDetector(factor=2, window_steps=4), [1, 1, 1, 100]))


def test_a_resumed_detector_goes_on():
    losses = [3, 2, 4, 3, 9, 3, 8, 2]
    whole = SpikeDetector(factor=2, window_steps=3)
    expected = feed(whole, losses)
    first = SpikeDetector(factor=2, window_steps=3)
    begun = feed(first, losses[:5])
    second = SpikeDetector(factor=2, window_steps=3, **first.state())
    assert begun + feed(second, losses[5:]) == expected
    assert second.skipped == whole.skipped > 0
