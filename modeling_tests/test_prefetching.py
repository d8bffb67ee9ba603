"""Results of threads: in order, bounded, and with the errors at their turn."""

import threading
from collections.abc import Iterator

import pytest

from transformers_lion.prefetching import prefetch

BOTH = pytest.mark.parametrize("is_daemon", [False, True])


@BOTH
def test_results_are_in_order_and_no_more_are_begun_than_there_is_room_for(is_daemon: bool) -> None:
    read: list[int] = []
    main = threading.get_ident()

    def items() -> Iterator[int]:
        for item in range(20):
            assert threading.get_ident() == main
            read.append(item)
            yield item

    results = prefetch(lambda item: (item, threading.get_ident()), items(), ahead=3, is_daemon=is_daemon)
    for expected in range(5):
        item, thread = next(results)
        assert item == expected
        assert thread != main
        assert read == list(range(expected + 4))
    assert [item for item, _ in results] == list(range(5, 20))
    assert read == list(range(20))


def test_what_waits_is_computed_at_its_turn_in_the_callers_thread() -> None:
    started: list[int] = []

    def compute(item: int) -> bool:
        started.append(item)
        return threading.current_thread() is threading.main_thread()

    results = prefetch(compute, range(4), ahead=3, waits=lambda item: item == 2)
    assert [next(results), next(results)] == [False, False]
    assert 2 not in started
    assert list(results) == [True, False]


@BOTH
def test_an_error_is_raised_at_its_turn_and_threads_end(is_daemon: bool) -> None:
    results = prefetch(lambda item: 1 // item, [2, 1, 0, 1], ahead=2, is_daemon=is_daemon)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    started = prefetch(str, range(100), ahead=2, is_daemon=is_daemon)
    assert next(started) == "0"
    started.close()
    for thread in threading.enumerate():
        if thread.name.startswith("lion-prefetch"):
            assert thread.daemon == is_daemon
            thread.join(10)
            assert not thread.is_alive()


def test_threads_of_a_pool_are_as_many_as_asked_for() -> None:
    together = threading.Barrier(5, timeout=20)
    assert len(list(prefetch(lambda item: together.wait(), range(10), ahead=9, num_threads=5, is_daemon=True))) == 10
