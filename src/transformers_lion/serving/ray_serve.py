"""The engine "ray": the application in the replicas of a Ray Serve deployment.

Each replica has its own model and queue. The application refuses requests with status 503 and ends them with 504 before
Serve does so itself, because the texts of Serve's own errors do not reach OpenAI's clients.

A shutdown first drains the replicas: new requests get status 503, running ones are answered. Then the application is
deleted. Serve and Ray are only stopped if this process has started them; on a standing cluster they belong to others.
"""

import logging
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import ray
from ray import serve

from .settings import Limits

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ..inference import Lion

logger = logging.getLogger(__name__)

APP_NAME = "lion"
DEPLOYMENT = "Lion"
MARGIN = 30.0
"""Seconds by which Serve's time-outs exceed the service's own."""
SPARE_REQUESTS = 512
"""Requests that Serve passes to a replica beyond its limit, so that the replica refuses them in its own words."""


@dataclass(frozen=True)
class RaySettings:
    """How a service runs on Ray.

    Attributes:
        name: Name of the Serve application.
        address: Address of a standing cluster, such as "auto"; a Ray instance of its own by default.
        host, port: Where Serve's proxy listens. On a cluster where Serve already runs, its proxy stays as it is.
        num_replicas: Number of replicas.
        num_cpus: CPUs per replica, which is also the number of threads of torch.
        num_gpus: GPUs per replica; fractions share a GPU.
        route_prefix: Path under which the application is served.
    """

    name: str = APP_NAME
    address: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    num_replicas: int = 1
    num_cpus: float = 1
    num_gpus: float = 0
    route_prefix: str = "/"


@serve.ingress()
class LionReplica:
    """A replica with its own model and queue. The model is loaded before the replica gets requests.

    Args:
        load: Loads the model.
        model: Name of the model in requests.
        limits: The limits.
    """

    async def __init__(self, load: "Callable[[], Lion]", model: str, limits: Limits):  # type: ignore[misc]
        from .service import Service

        replica = serve.get_replica_context().replica_id.unique_id
        self.service = Service(load, model, limits, replica)
        await self.service.start()

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """Build the application after the model is loaded."""
        from .app import build_app

        return build_app(self.service)

    async def drain(self) -> bool:
        """Refuse new requests and wait for the running ones. Returns whether all of them were answered."""
        return await self.service.drain()

    async def __del__(self) -> None:
        """Stop the queue."""
        if hasattr(self, "service"):
            await self.service.close()


def build_application(load: "Callable[[], Lion]", model: str, limits: Limits, settings: RaySettings) -> Any:
    """Return the Serve application for `serve.run`.

    Args:
        load: Loads the model, in each replica. It is pickled, so it should be a function of a module, or a
            `functools.partial` of one.
        model: Name of the model in requests.
        limits: The limits of each replica.
        settings: How to run on Ray.
    """
    deployment: Any = serve.deployment(
        LionReplica,
        name=DEPLOYMENT,
        num_replicas=settings.num_replicas,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        max_ongoing_requests=limits.max_requests + SPARE_REQUESTS,
        max_queued_requests=limits.max_requests * settings.num_replicas,
        graceful_shutdown_timeout_s=limits.drain_timeout + MARGIN,
        max_constructor_retry_count=1,
    )
    return deployment.bind(load, model, limits)


def serve_on_ray(
    load: "Callable[[], Lion]",
    model: str,
    limits: Limits,
    settings: RaySettings,
    announce: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT, and then drain.

    Args:
        load, model, limits, settings: See `build_application`.
        announce: Called with sentences about the state of the service.

    Raises:
        ValueError: If the application cannot be started.
        KeyboardInterrupt: If a signal arrives before it is started, or a second one before it is drained.
    """
    connect(settings, announce)
    try:
        with ending_signals() as signals:
            start(load, model, limits, settings)
            announce(f"{model} is ready at {address_of(settings)}/v1")
            signals.wait()
            announce(f"Draining: running requests are answered, new ones are refused ({settings.name}).")
            stop(settings.name, limits.drain_timeout)
    finally:
        disconnect(settings)


def connect(settings: RaySettings, announce: Callable[[str], None]) -> None:
    """Connect to a cluster, or start a Ray instance.

    Raises:
        ConnectionError: If there is no cluster at the address.
    """
    if settings.address is None:
        announce("Starting a Ray instance, which ends with this process.")
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    else:
        announce(
            f"Connecting to the Ray cluster at {settings.address}. Serve and Ray keep running when this process ends."
        )
        ray.init(settings.address, log_to_driver=False, logging_level=logging.ERROR)


def start(load: "Callable[[], Lion]", model: str, limits: Limits, settings: RaySettings) -> None:
    """Start the application and wait until its model is loaded. If that fails, the application is deleted.

    Raises:
        ValueError: If it cannot be started.
    """
    check_resources(settings)
    serve.start(
        http_options={
            "host": settings.host,
            "port": settings.port,
            "request_timeout_s": limits.timeout + MARGIN,
        }
    )
    application = build_application(load, model, limits, settings)
    try:
        serve.run(application, name=settings.name, route_prefix=settings.route_prefix)
    except BaseException as error:
        reason = reason_of(settings.name, error)
        serve.delete(settings.name)
        if isinstance(error, RuntimeError):
            raise ValueError(f"The application {settings.name} cannot be started: {reason}") from error
        raise


def check_resources(settings: RaySettings) -> None:
    """Raise `ValueError` if an instance of its own can never run all replicas, for which Serve would wait forever."""
    if settings.address is not None:  # clusters can grow
        return
    available = ray.cluster_resources()
    for kind, amount in (("CPU", settings.num_cpus), ("GPU", settings.num_gpus)):
        needed, there = settings.num_replicas * amount, available.get(kind, 0.0)
        if needed > there:
            raise ValueError(
                f"{settings.num_replicas} replicas with {amount:g} {kind}s need {needed:g} {kind}s, but this machine "
                f"has {there:g}."
            )


def reason_of(name: str, error: BaseException) -> str:
    """Return the last error in Serve's messages about an application, which is that of the replica."""
    found = serve.status().applications.get(name)
    deployments = () if found is None else found.deployments.values()
    lines = [line.strip() for deployment in deployments for line in deployment.message.splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or [str(error)])[-1]


def stop(name: str, drain_timeout: float) -> bool:
    """Drain the replicas of an application, and delete it. Serve itself keeps running.

    Args:
        name: Name of the application.
        drain_timeout: Seconds to wait for running requests.

    Returns:
        Whether all running requests were answered.

    Raises:
        ValueError: If there is no such application.
    """
    if name not in serve.status().applications:
        known = ", ".join(map(repr, serve.status().applications)) or "none"
        raise ValueError(f"There is no application {name!r} on this cluster; there are {known}.")
    try:
        answered = serve.get_app_handle(name).broadcast("drain").results(timeout_s=drain_timeout + MARGIN)
    except Exception as error:  # an application that is not running, or not of this package
        logger.warning("%s could not be drained before it is deleted: %s", name, error)
        answered = [False]
    serve.delete(name)
    return all(answered)


def stop_from_outside(name: str, address: str, drain_timeout: float) -> bool:
    """Drain and delete an application on a standing cluster; see `stop`."""
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        return stop(name, drain_timeout)
    finally:
        ray.shutdown()


def disconnect(settings: RaySettings) -> None:
    """Stop Serve and Ray if this process has started them, otherwise only close the connection."""
    if settings.address is None:
        serve.shutdown()
    ray.shutdown()


class EndingSignals:
    """SIGTERM and SIGINT. One that arrives during `wait` ends it; any other raises `KeyboardInterrupt`."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.is_waiting = False

    def wait(self) -> None:
        """Wait for a signal."""
        self.is_waiting = True
        self.ended.wait()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if not self.is_waiting or self.ended.is_set():
            raise KeyboardInterrupt
        self.ended.set()


@contextmanager
def ending_signals() -> Iterator[EndingSignals]:
    """Handle SIGTERM and SIGINT during the block, in place of what Ray does on them."""
    signals = EndingSignals()
    before = {number: signal.signal(number, signals.handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def address_of(settings: RaySettings) -> str:
    """Return the URL of the application."""
    return f"http://{settings.host}:{settings.port}{settings.route_prefix.rstrip('/')}"


__all__ = ["RaySettings", "build_application", "serve_on_ray", "start", "stop", "stop_from_outside"]
