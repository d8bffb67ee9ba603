"""The entrance of the service: an ASGI middleware that counts, limits and refuses requests before they are read.

A request whose client has gone is cancelled, so that it is left out of the next forward pass. Servers do not do this by
themselves.
"""

import asyncio
import time
from contextlib import suppress
from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ServiceError, not_received, too_large
from .service import Service
from .settings import Limits

CLIENT_GONE = 499
"""Status in metrics of a request whose client has gone, as in nginx."""

DISCARDING_SECONDS = 10
"""Time for a client to send the rest of a body that is not read."""


class Gate:
    """Guards all requests that use the model, which are those with the method POST.

    Args:
        app: The application.
        service: The service.
    """

    def __init__(self, app: ASGIApp, service: Service):
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Process a request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        passage = Passage(self.app, self.service.limits, send)
        start = time.perf_counter()
        try:
            self.service.check_admission()
            passage.check_length(scope)
            self.service.admission.enter()
            try:
                await passage.run(scope, receive)
            finally:
                self.service.admission.leave()
        except ServiceError as error:
            await passage.refuse(scope, receive, error)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.service.metrics.count_request(route, passage.status, time.perf_counter() - start)


class Passage:
    """One request on its way through the application.

    Args:
        app: The application.
        limits: Limits on the size of the body, and on the time until it is complete.
        send: Sends the response.
    """

    def __init__(self, app: ASGIApp, limits: Limits, send: Send):
        self.app = app
        self.limit = limits.max_body_bytes
        self.timeout = limits.timeout
        self.forward = send
        self.status = 500
        self.is_answered = False
        self.is_read = False
        self.messages: asyncio.Queue[Message | ServiceError] = asyncio.Queue()

    def check_length(self, scope: Scope) -> None:
        """Raise `ServiceError` if the body is said to be too large."""
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > self.limit:
            raise self.too_large(int(length))

    def too_large(self, size: int) -> ServiceError:
        """Return the error for a body of `size` bytes or more."""
        return too_large(f"The request has at least {size:,} bytes, but the limit is {self.limit:,}.")

    async def run(self, scope: Scope, receive: Receive) -> None:
        """Run the application, and cancel it if the client goes."""
        running = asyncio.ensure_future(self.app(scope, self.receive, self.send))
        listening = asyncio.ensure_future(self.listen(receive, running))
        try:
            await running
        except asyncio.CancelledError:
            if not listening.done():  # the server cancels this request
                running.cancel()
                raise
            self.status = CLIENT_GONE
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening

    async def listen(self, receive: Receive, running: "asyncio.Future[Any]") -> None:
        """Read the body, and cancel the request when the client goes."""
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                if not self.is_answered:
                    running.cancel()
                return
            size += len(message.get("body", b""))
            if size <= self.limit:
                self.messages.put_nowait(message)
            elif not message.get("more_body", False):  # a client only reads the answer after sending all
                self.messages.put_nowait(self.too_large(size))

    async def receive(self) -> Message:
        """Return the next part of the body. After the last part, wait until the request is cancelled."""
        try:
            message = await asyncio.wait_for(self.messages.get(), None if self.is_read else self.timeout)
        except asyncio.TimeoutError as error:
            raise not_received(self.timeout) from error
        if isinstance(message, ServiceError):
            raise message
        self.is_read = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the response."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.is_answered = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self.forward(message)

    async def refuse(self, scope: Scope, receive: Receive, error: ServiceError) -> None:
        """Send an error, after the client has sent the body: many clients only then read the response."""
        self.status = error.status_code
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(discard(receive), DISCARDING_SECONDS)
        await JSONResponse(error.body, error.status_code, error.headers)(scope, receive, self.forward)


async def discard(receive: Receive) -> None:
    """Read the rest of the body, or until the client has gone."""
    while (await receive()).get("more_body", False):
        pass


__all__ = ["Gate"]
