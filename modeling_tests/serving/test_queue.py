"""The gathering queue: batches that grow, errors of single items, callers that have gone."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from transformers_lion.serving.queue import Admission, Batch, GatheringQueue, QueueClosed

Queue = GatheringQueue[Any, Any]


class Forward:
    """Returns each item, and remembers the batches. The item "bad" is an error. While `hold` is set, it waits."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.hold = threading.Event()
        self.released = threading.Event()

    def __call__(self, batch: Batch[Any, Any]) -> list[Any]:
        self.batches.append(batch.items)
        if self.hold.is_set():
            self.released.wait(5)
        if "bad" in batch.items:
            raise ValueError("bad")
        return [KeyError(item) if item == "refused" else item for item in batch.items]


def run(test: Callable[[Queue, Forward], Awaitable[None]], max_batch_size: int = 8) -> list[list[Any]]:
    """Run a test with a queue, and return the batches."""
    forward = Forward()

    async def body() -> None:
        queue = Queue(forward, max_batch_size)
        queue.start()
        try:
            await test(queue, forward)
        finally:
            forward.released.set()
            await queue.close()

    asyncio.run(asyncio.wait_for(body(), 10))
    return forward.batches


async def busy(queue: Queue, forward: Forward) -> "asyncio.Task[Any]":
    """Keep the model busy with one item until `released` is set."""
    forward.hold.set()
    task = asyncio.ensure_future(queue.submit("first"))
    while not forward.batches:
        await asyncio.sleep(0.001)
    forward.hold.clear()
    return task


def start_all(queue: Queue, *items: Any, **options: Any) -> "list[asyncio.Task[Any]]":
    return [asyncio.ensure_future(queue.submit(item, **options)) for item in items]


def test_what_arrives_while_the_model_is_busy_is_one_batch() -> None:
    async def test(queue: Queue, forward: Forward) -> None:
        first = await busy(queue, forward)
        rest = start_all(queue, *range(7))
        await asyncio.sleep(0)
        forward.released.set()
        assert await asyncio.gather(first, *rest) == ["first", *range(7)]

    assert run(test) == [["first"], list(range(7))]


def test_a_batch_has_at_most_the_maximum_size_and_keeps_the_order() -> None:
    async def test(queue: Queue, forward: Forward) -> None:
        await asyncio.gather(*start_all(queue, *range(5)))

    assert run(test, max_batch_size=2) == [[0, 1], [2, 3], [4]]


def test_an_item_that_fails_the_batch_fails_alone() -> None:
    async def test(queue: Queue, forward: Forward) -> None:
        results = await asyncio.gather(*start_all(queue, "a", "bad", "c"), return_exceptions=True)
        assert [results[0], results[2]] == ["a", "c"]
        assert isinstance(results[1], ValueError)

    assert run(test) == [["a", "bad", "c"], ["a"], ["bad"], ["c"]]


def test_an_error_in_the_place_of_a_result_is_raised_to_its_caller_only() -> None:
    async def test(queue: Queue, forward: Forward) -> None:
        results = await asyncio.gather(*start_all(queue, "a", "refused"), return_exceptions=True)
        assert results[0] == "a"
        assert isinstance(results[1], KeyError)

    assert run(test) == [["a", "refused"]]


def test_callers_that_have_gone_are_left_out() -> None:
    async def test(queue: Queue, forward: Forward) -> None:
        first = await busy(queue, forward)
        gone, kept = start_all(queue, "gone", "kept")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(queue.submit("late"), 0.01)
        gone.cancel()
        forward.released.set()
        assert await asyncio.gather(first, kept) == ["first", "kept"]

    assert run(test) == [["first"], ["kept"]]


def test_the_forward_pass_knows_when_nobody_waits_any_more() -> None:
    wanted: list[bool] = []

    async def test(queue: Queue, forward: Forward) -> None:
        def wait(batch: Batch[Any, Any]) -> list[Any]:
            wanted.append(batch.is_wanted())
            task.get_loop().call_soon_threadsafe(task.cancel)
            while batch.is_wanted():
                time.sleep(0.001)
            wanted.append(batch.is_wanted())
            return batch.items

        queue.forward = wait
        (task,) = start_all(queue, "a")
        with pytest.raises(asyncio.CancelledError):
            await task
        while len(wanted) < 2:
            await asyncio.sleep(0.001)

    run(test)
    assert wanted == [True, False]


def test_items_with_different_keys_are_never_in_one_batch() -> None:
    async def test(queue: Queue, forward: Forward) -> None:
        tasks = [asyncio.ensure_future(queue.submit(item, key=item[0])) for item in ("a1", "b1", "a2", "b2")]
        await asyncio.gather(*tasks)

    assert run(test) == [["a1", "a2"], ["b1", "b2"]]


def test_an_item_that_does_not_fit_is_not_overtaken_and_a_larger_one_is_alone() -> None:
    async def test(queue: Queue, forward: Forward) -> None:
        sizes = {"a": 1, "large": 2, "b": 1, "huge": 9}
        await asyncio.gather(*(asyncio.ensure_future(queue.submit(item, size)) for item, size in sizes.items()))

    assert run(test, max_batch_size=2) == [["a"], ["large"], ["b"], ["huge"]]


def test_a_closed_queue_tells_its_callers() -> None:
    async def test(queue: Queue, forward: Forward) -> None:
        first = await busy(queue, forward)
        (waiting,) = start_all(queue, "waiting")
        await asyncio.sleep(0)
        await queue.close()
        for task in (first, waiting):
            with pytest.raises(QueueClosed):
                await task
        with pytest.raises(QueueClosed):
            await queue.submit("late")

    assert run(test) == [["first"]]


def test_a_forward_pass_with_too_few_results_is_an_error() -> None:
    async def test(queue: Queue, forward: Forward) -> None:
        queue.forward = lambda batch: []
        with pytest.raises(RuntimeError, match="returned 0 results for 1 items"):
            await queue.submit("a")

    run(test)


def test_admission_is_empty_when_all_requests_have_left() -> None:
    async def test() -> None:
        admission = Admission(2)
        admission.enter()
        admission.enter()
        assert admission.is_full
        waiting = asyncio.ensure_future(admission.wait_until_empty())
        admission.leave()
        await asyncio.sleep(0.01)
        assert not waiting.done()
        admission.leave()
        await asyncio.wait_for(waiting, 1)

    asyncio.run(test())
