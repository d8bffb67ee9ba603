"""Computes results in background threads before they are needed, such as decoding images while a model runs."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

NUM_THREADS = 2
"""Default number of background threads."""


def prefetch(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int,
    num_threads: int = NUM_THREADS,
    is_daemon: bool = False,
    waits: Callable[[Item], bool] = lambda item: False,
) -> Generator[Result, None, None]:
    """Yield `function(item)` for each item in order, computed in background threads.

    Args:
        function: Called in a background thread. If it raises an error, the generator raises it at the
            item's turn.
        items: Iterated over in the caller's thread, as far as `ahead` allows.
        ahead: Maximum number of finished or pending results to keep beyond the last one yielded.
        num_threads: Number of background threads.
        is_daemon: Whether the end of the process does not wait for these threads, such as for slow downloads.
        waits: Whether to call `function` at the item's turn in the caller's thread, for example for a download, which
            Ctrl-C could not interrupt in another thread.
    """
    name = "lion-prefetch"
    pool = DaemonThreads(num_threads, name) if is_daemon else ThreadPoolExecutor(num_threads, thread_name_prefix=name)
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


class DaemonThreads:
    """A pool of threads, as `ThreadPoolExecutor`, except that the end of the process does not wait for them."""

    def __init__(self, num_threads: int, name: str):
        self._num_threads = num_threads
        self._name = name
        self._tasks = SimpleQueue[tuple[Future, Callable[[Any], Any], Any] | None]()
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[[Item], Result], item: Item) -> Future[Result]:
        """Call `function(item)` in one of the threads."""
        future = Future[Result]()
        self._tasks.put((future, function, item))
        if len(self._threads) < self._num_threads:
            thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, function, item = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function(item))
            except BaseException as error:
                future.set_exception(error)
            del task, future, item  # or the last result stays in memory while the thread waits

    def shutdown(self, wait: bool, cancel_futures: bool) -> None:
        """End the threads, as `ThreadPoolExecutor.shutdown` does."""
        with suppress(Empty):
            while cancel_futures:
                task = self._tasks.get_nowait()
                if task is not None:
                    task[0].cancel()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads if wait else []:
            thread.join()


__all__ = ["prefetch"]
