"""Work that threads do ahead of the one who needs its results, such as decoding images while a model computes."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

NUM_THREADS = 2
"""Threads that work ahead."""


def prefetch(function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Generator[Result, None, None]:
    """Yield `function(item)` for each item in order, computed in threads.

    Args:
        function: Called in a thread. If it raises an error, so does the iterator, at the item's turn.
        items: Read in the caller's thread, when there is room.
        ahead: Number of results, finished or not, that are kept beyond the one that was yielded last.
    """
    pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="lion-prefetch")
    waiting = deque[Callable[[], Result]]()
    try:
        for item in items:
            waiting.append(pool.submit(function, item).result)
            if len(waiting) > ahead:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()
    finally:  # also when the caller stops early or is interrupted
        pool.shutdown(wait=False, cancel_futures=True)


__all__ = ["prefetch"]
