"""The engine "local": the application in this process, with uvicorn.

On SIGTERM and SIGINT, new requests get status 503, running ones are answered, and then the server stops. A second
signal stops it at once.
"""

import asyncio
from collections.abc import Callable
from types import FrameType

import uvicorn

from .app import build_app
from .service import Service

CLOSING_SECONDS = 5
"""Time to close connections after all requests have been answered."""


class DrainingServer(uvicorn.Server):
    """A server that answers running requests before it stops.

    Args:
        service: The service.
        host: Address to listen on.
        port: Port to listen on; 0 for a free one.
    """

    def __init__(self, service: Service, host: str, port: int):
        app = build_app(service)
        super().__init__(
            uvicorn.Config(
                app, host, port, log_level="warning", lifespan="off", timeout_graceful_shutdown=CLOSING_SECONDS
            )
        )
        self.service = service
        self.loop: asyncio.AbstractEventLoop | None = None
        self.draining: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return self.servers[0].sockets[0].getsockname()[1]

    async def run_service(self, announce: Callable[[str], None]) -> None:
        """Load the model, and serve until a signal or `begin_draining` ends it.

        Args:
            announce: Called with a sentence when the server listens, when the model is loaded, and when it stops.

        Raises:
            Exception: If the model cannot be loaded.
            OSError: If the port cannot be used.
        """
        self.loop = asyncio.get_running_loop()
        starting = asyncio.ensure_future(self.start_service(announce))
        try:
            await self.serve()
        except SystemExit as error:  # uvicorn has logged the reason
            raise OSError(f"Cannot listen on {self.config.host}, port {self.config.port}.") from error
        finally:
            await self.service.close()
            starting.cancel()
        failure = starting.exception() if starting.done() and not starting.cancelled() else None
        if failure is not None:
            raise failure

    async def start_service(self, announce: Callable[[str], None]) -> None:
        """Load the model while the server already listens. If that fails, the server stops."""
        try:
            while not self.started and not self.should_exit:
                await asyncio.sleep(0.01)
            announce(f"Listening on http://{self.config.host}:{self.port}; the model is loading.")
            await self.service.start()
            announce(f"{self.service.name} is ready at http://{self.config.host}:{self.port}/v1")
        except Exception:
            self.should_exit = True
            raise

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain on the first signal, and stop on the second."""
        if self.draining is not None or self.loop is None:
            self.should_exit = self.force_exit = True
        else:
            self.loop.call_soon_threadsafe(self.begin_draining)

    def begin_draining(self) -> None:
        """Refuse new requests, wait for the running ones, and stop."""
        if self.draining is None:
            self.draining = asyncio.ensure_future(self.drain())

    async def drain(self) -> None:
        """Wait for the running requests, and let the server stop."""
        try:
            await self.service.drain()
        finally:
            self.should_exit = True


def serve_locally(service: Service, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        service: The service.
        host: Address to listen on.
        port: Port to listen on; 0 for a free one.
        announce: Called with sentences about the state of the server.

    Raises:
        Exception: If the model cannot be loaded.
        OSError: If the port cannot be used.
    """
    asyncio.run(DrainingServer(service, host, port).run_service(announce))


__all__ = ["DrainingServer", "serve_locally"]
