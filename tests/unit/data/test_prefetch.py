from __future__ import annotations

import threading
import time

import pytest

from bnb_ds.data.prefetch import prefetched
from bnb_ds.errors import DataError

SETTINGS = {"workers": 1, "ahead": 1, "timeout_seconds": 30.0, "describe_wait": lambda: "waiting for train-00003"}


def loader_threads():
    return sum(thread.name == "loader" for thread in threading.enumerate())


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (3, 2), (2, 7)])
def test_results_come_in_order_and_threads_end(workers, ahead):
    def make(item):
        time.sleep(0.001 * (item % 3))
        return item * item

    settings = {**SETTINGS, "workers": workers, "ahead": ahead}
    assert list(prefetched(make, range(20), **settings)) == [i * i for i in range(20)]
    assert list(prefetched(make, [], **settings)) == []
    assert loader_threads() == 0


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (4, 3)])
def test_no_more_than_ahead_are_made_before_they_are_asked_for(workers, ahead):
    made = []
    results = prefetched(lambda item: made.append(item), range(50), **{**SETTINGS, "workers": workers, "ahead": ahead})
    for taken in range(1, 6):
        next(results)
        time.sleep(0.05)
        assert len(made) <= taken + ahead
    results.close()
    assert loader_threads() == 0


def test_an_error_comes_in_the_place_of_its_result():
    def make(item):
        if item == 2:
            raise TimeoutError("the maker's own")
        return item

    results = prefetched(make, range(5), **SETTINGS)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(TimeoutError, match="the maker's own"):
        next(results)
    assert loader_threads() == 0


def test_a_result_that_takes_too_long_is_an_error_that_says_what_is_waited_for():
    go_on = threading.Event()
    results = prefetched(lambda item: go_on.wait(30), range(3), **{**SETTINGS, "timeout_seconds": 0.05})
    with pytest.raises(DataError) as error:
        next(results)
    assert str(error.value) == (
        "no data for 0.05 s: waiting for train-00003; mend the storage or raise loader.timeout_seconds, then"
        " --resume auto"
    )
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "loader")
    go_on.set()
