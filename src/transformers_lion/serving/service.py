"""The service: the model, its queue, the images and the metrics, and the life of the process."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from ..inference import Answer, Lion
from ..ram import TaggedImage
from .errors import failed, invalid, loading, overloaded, shutting_down, timed_out
from .images import ImageReader
from .metrics import Metrics
from .model import AnswerWork, Outcome, TagWork, Work, compute
from .queue import Admission, Batch, GatheringQueue, QueueClosed
from .settings import Limits

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


class Service:
    """Answers requests with one model.

    Args:
        load: Loads the model. It is called in a thread by `start`.
        name: Name of the model.
        limits: The limits.
        replica: Name of the process in metrics.
    """

    def __init__(self, load: Callable[[], Lion], name: str, limits: Limits, replica: str = ""):
        self.load = load
        self.name = name
        self.limits = limits
        self.created = int(time.time())
        self.metrics = Metrics(replica)
        self.images = ImageReader(limits)
        self.admission = Admission(limits.max_requests)
        self.queue: GatheringQueue[Work, Outcome] = GatheringQueue(self.forward, limits.max_batch_size)
        self.loaded = asyncio.Event()
        self.load_error: Exception | None = None
        self.model: Lion | None = None

    # --- life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load the model and start the queue.

        Raises:
            Exception: If the model cannot be loaded.
        """
        try:
            self.model = await run_detached(self.load)
            self.queue.start()
        except Exception as error:
            self.load_error = error
            raise
        finally:
            self.loaded.set()

    def refuse(self) -> None:
        """Refuse new requests from now on. Running ones are answered."""
        self.admission.is_open = False

    async def drain(self) -> bool:
        """Refuse new requests and wait for the running ones.

        Returns:
            Whether all of them were answered within `drain_timeout`.
        """
        self.refuse()
        try:
            await asyncio.wait_for(self.admission.wait_until_empty(), self.limits.drain_timeout)
        except asyncio.TimeoutError:
            logger.warning(
                "%d requests were not answered within %g seconds.", self.admission.count, self.limits.drain_timeout
            )
            return False
        return True

    async def close(self) -> None:
        """Stop the queue and the threads. Requests that still wait get status 503."""
        self.refuse()
        await self.queue.close()
        self.images.close()

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded and requests are accepted."""
        return self.model is not None and self.admission.is_open

    def check_admission(self) -> None:
        """Raise `ServiceError` unless a new request can be accepted."""
        if not self.admission.is_open:
            raise shutting_down()
        if self.model is None:
            raise loading()
        if self.admission.is_full:
            raise overloaded(self.admission.limit)

    @property
    def lion(self) -> Lion:
        """The loaded model.

        Raises:
            ServiceError: If it is not loaded.
        """
        if self.model is None:
            raise loading()
        return self.model

    # --- work --------------------------------------------------------------------------------------------------

    async def answer(self, work: AnswerWork) -> list[Answer]:
        """Answer questions in one of the next forward passes.

        Raises:
            ServiceError: If the model fails on them, or the service is closed.
        """
        answers: Any = await self._submit(work)
        return answers

    async def tag(self, work: TagWork) -> TaggedImage:
        """Tag an image in one of the next forward passes.

        Raises:
            ServiceError: If there is no tagger, the model fails, or the service is closed.
        """
        if self.lion.tagger is None:
            raise invalid(f"The model {self.name} has no tagger.", code="no_tagger")
        tagged: Any = await self._submit(work)
        return tagged

    async def _submit(self, work: Work) -> Outcome:
        """Put a work into the queue, and wait for its outcome."""
        try:
            return await self.queue.submit(work, work.size, work.key)
        except QueueClosed as error:
            raise shutting_down() from error
        except Exception as error:
            logger.exception("The model failed on a request with %d questions.", work.size)
            raise failed(error) from error

    def forward(self, batch: "Batch[Work, Outcome]") -> Sequence[Outcome | Exception]:
        """Compute a batch; called in the queue's thread."""
        start = time.perf_counter()
        for work in batch.items:
            self.metrics.count_waiting(start - work.created)
        try:
            return compute(self.lion, batch, self.limits.max_batch_size)
        finally:
            self.metrics.count_batch(batch.size, time.perf_counter() - start)

    async def within_time(self, answering: Awaitable[Value], deadline: float | None = None) -> Value:
        """Wait for an answer, at most as long as the limit.

        Args:
            answering: The answer.
            deadline: When the time is over, on the event loop's clock; `timeout` seconds from now by default.

        Raises:
            ServiceError: If the time is over. The work is then left out of the next forward passes.
        """
        now = asyncio.get_running_loop().time()
        try:
            return await asyncio.wait_for(answering, self.limits.timeout if deadline is None else deadline - now)
        except asyncio.TimeoutError as error:
            raise timed_out(self.limits.timeout) from error


def run_detached(function: Callable[[], Value]) -> "asyncio.Future[Value]":
    """Run a function in a thread that does not keep the process alive, so that loading a model can be interrupted."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Value] = loop.create_future()

    def settle(result: Value | None, error: Exception | None) -> None:
        if outcome.cancelled():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as raised:
            error = raised
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True, name="lion-load").start()
    return outcome


__all__ = ["Service"]
