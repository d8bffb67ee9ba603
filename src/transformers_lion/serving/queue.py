"""A queue that gathers requests into batches: whatever waits when the model is free goes into the next forward pass.

Batches therefore grow while the model is busy, and a single request never waits for others. It is plain asyncio and
knows no model.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueClosed(Exception):  # noqa: N818
    """Raised to callers that wait in a queue when it is closed."""


@dataclass(eq=False)
class Entry(Generic[Item, Result]):
    """A waiting item.

    Attributes:
        item: The item.
        size: Number of questions in it.
        key: Items with different keys are never in one batch.
        result: Set when the item is done; cancelled when its caller has gone.
    """

    item: Item
    size: int
    key: Hashable
    result: "asyncio.Future[Result]"

    @property
    def is_wanted(self) -> bool:
        """Whether the caller still waits."""
        return not self.result.done()


@dataclass
class Batch(Generic[Item, Result]):
    """The items of a forward pass.

    Attributes:
        entries: Its entries, at least one.
    """

    entries: list[Entry[Item, Result]] = field(default_factory=list)

    @property
    def items(self) -> list[Item]:
        """The items in order of arrival."""
        return [entry.item for entry in self.entries]

    @property
    def key(self) -> Hashable:
        """The key of all items."""
        return self.entries[0].key

    @property
    def size(self) -> int:
        """Number of questions."""
        return sum(entry.size for entry in self.entries)

    def is_wanted(self) -> bool:
        """Whether any caller still waits. Can be called from any thread."""
        return any(entry.is_wanted for entry in self.entries)


Forward = Callable[[Batch[Item, Result]], Sequence[Result | Exception]]
"""Computes a batch in a thread, and returns a result or an exception for each item."""


class GatheringQueue(Generic[Item, Result]):
    """Gathers items into batches and computes them one batch at a time, in a thread.

    If a forward pass with several items raises an error, each item is computed alone, so that only the item that causes
    the error fails. Items whose callers have gone, because they were cancelled or their time is over, are left out.

    Args:
        forward: Computes a batch.
        max_batch_size: Maximum size of a batch. A larger item is a batch of its own.
    """

    def __init__(self, forward: Forward[Item, Result], max_batch_size: int):
        self.forward = forward
        self.max_batch_size = max_batch_size
        self.waiting: deque[Entry[Item, Result]] = deque()
        self.arrived = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="lion-forward")
        self.runner: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start computing, in the running event loop."""
        self.runner = asyncio.get_running_loop().create_task(self.run())

    async def close(self) -> None:
        """Stop. Callers that still wait get `QueueClosed`. A forward pass that is running is not waited for."""
        if self.runner is not None:
            self.runner.cancel()
            with suppress(asyncio.CancelledError):
                await self.runner
        self.thread.shutdown(wait=False, cancel_futures=True)
        for entry in self.waiting:
            if entry.is_wanted:
                entry.result.set_exception(QueueClosed())
        self.waiting.clear()

    async def submit(self, item: Item, size: int = 1, key: Hashable = None) -> Result:
        """Compute an item in one of the next batches.

        Args:
            item: The item.
            size: Number of questions in it.
            key: Items with different keys are never in one batch.

        Raises:
            QueueClosed: If the queue is closed.
            Exception: What the forward pass raises or returns for this item.
        """
        if self.runner is None or self.runner.done():
            raise QueueClosed
        entry: Entry[Item, Result] = Entry(item, size, key, asyncio.get_running_loop().create_future())
        self.waiting.append(entry)
        self.arrived.set()
        return await entry.result  # cancelled together with the caller

    async def run(self) -> None:
        """Compute batches until the task is cancelled."""
        while True:
            await self.arrived.wait()
            batch = self.gather()
            if batch.entries:
                await self.compute(batch)
            else:
                self.arrived.clear()

    def gather(self) -> Batch[Item, Result]:
        """Take the oldest item, and all later ones with the same key that fit into the batch."""
        batch: Batch[Item, Result] = Batch()
        left: deque[Entry[Item, Result]] = deque()
        is_full = False
        for entry in self.waiting:
            if not entry.is_wanted:
                continue
            is_first = not batch.entries
            if is_first or (not is_full and entry.key == batch.key and batch.size + entry.size <= self.max_batch_size):
                batch.entries.append(entry)
                continue
            is_full = is_full or entry.key == batch.key  # later items do not overtake one that does not fit
            left.append(entry)
        self.waiting = left
        return batch

    async def compute(self, batch: Batch[Item, Result]) -> None:
        """Compute a batch, and give each caller its result or its error."""
        try:
            results = await asyncio.get_running_loop().run_in_executor(self.thread, self.forward, batch)
            if len(results) != len(batch.entries):
                raise RuntimeError(f"The forward pass returned {len(results)} results for {len(batch.entries)} items.")
        except asyncio.CancelledError:
            for entry in batch.entries:
                if entry.is_wanted:
                    entry.result.set_exception(QueueClosed())
            raise
        except Exception as error:
            await self.recover(batch, error)
            return
        for entry, result in zip(batch.entries, results, strict=True):
            settle(entry, result)

    async def recover(self, batch: Batch[Item, Result], error: Exception) -> None:
        """Compute each item of a failed batch alone. An item that was alone has failed."""
        if len(batch.entries) == 1:
            settle(batch.entries[0], error)
            return
        for entry in batch.entries:
            if entry.is_wanted:
                await self.compute(Batch([entry]))


def settle(entry: Entry[Item, Result], result: Result | Exception) -> None:
    """Give a caller its result or error, unless it has gone."""
    if not entry.is_wanted:
        return
    if isinstance(result, Exception):
        entry.result.set_exception(result)
    else:
        entry.result.set_result(result)


class Admission:
    """Counts the requests that are being processed, and refuses more than a limit.

    Args:
        limit: Maximum number of requests.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.count = 0
        self.is_open = True
        self.changed = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached."""
        return self.count >= self.limit

    def enter(self) -> None:
        """Count a request. Call `leave` when it is done."""
        self.count += 1

    def leave(self) -> None:
        """Count a request as done."""
        self.count -= 1
        self.changed.set()

    async def wait_until_empty(self) -> None:
        """Wait until no requests are being processed."""
        while self.count:
            self.changed.clear()
            await self.changed.wait()


__all__ = ["Admission", "Batch", "GatheringQueue", "QueueClosed"]
