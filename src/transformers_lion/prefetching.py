"""Computes results in background threads before they are needed, such as decoding images while a model runs."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

NUM_THREADS = 2
"""Number of background threads."""


def prefetch(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int,
    waits: Callable[[Item], bool] = lambda item: False,
) -> Generator[Result, None, None]:
    """Yield `function(item)` for each item in order, computed in background threads.

    Args:
        function: Called in a background thread. If it raises an error, the generator raises it at the
            item's turn.
        items: Iterated over in the caller's thread, as far as `ahead` allows.
        ahead: Maximum number of finished or pending results to keep beyond the last one yielded.
        waits: Whether to call `function` at the item's turn in the caller's thread, for example for a download, which
            Ctrl-C could not interrupt in another thread.
    """
    pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="lion-prefetch")
    waiting = deque[Callable[[], Result]]()
    try:
        for item in items:
            waiting.append(partial(function, item) if waits(item) else pool.submit(function, item).result)
            if len(waiting) > ahead:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()
    finally:  # also when the caller stops early or is interrupted
        pool.shutdown(wait=False, cancel_futures=True)


__all__ = ["prefetch"]
