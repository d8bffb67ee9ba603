"""Prometheus metrics of a service."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one process.

    Args:
        replica: Name of the process, as the label `replica` of all metrics; empty for a single process.
    """

    def __init__(self, replica: str = ""):
        self.registry = CollectorRegistry()
        self.replica = replica

        def label(names: tuple[str, ...] = ()) -> tuple[str, ...]:
            return (*names, "replica")

        self._requests = Counter(
            "lion_requests", "Requests by route and HTTP status.", label(("route", "status")), registry=self.registry
        )
        self._seconds = Histogram(
            "lion_request_seconds", "Time from a request's arrival to the end of its response.", label(("route",)),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._waiting = Histogram(
            "lion_queue_seconds", "Time that questions wait for the model.", label(), buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._forward = Histogram(
            "lion_forward_seconds", "Time of a forward pass.", label(), buckets=SECONDS, registry=self.registry
        )
        self._sizes = Histogram(
            "lion_batch_size", "Questions per forward pass.", label(), buckets=SIZES, registry=self.registry
        )
        self._active = Gauge(
            "lion_requests_in_progress", "Requests that wait or are answered.", label(), registry=self.registry
        )
        self._ready = Gauge(
            "lion_ready", "1 if the model is loaded and requests are accepted.", label(), registry=self.registry
        )

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a finished request."""
        self._requests.labels(route, str(status), self.replica).inc()
        self._seconds.labels(route, self.replica).observe(seconds)

    def count_batch(self, size: int, seconds: float) -> None:
        """Count a forward pass."""
        self._sizes.labels(self.replica).observe(size)
        self._forward.labels(self.replica).observe(seconds)

    def count_waiting(self, seconds: float) -> None:
        """Count the time that a request waited for the model."""
        self._waiting.labels(self.replica).observe(seconds)

    def text(self, active: int, is_ready: bool) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        self._active.labels(self.replica).set(active)
        self._ready.labels(self.replica).set(float(is_ready))
        return generate_latest(self.registry)


__all__ = ["Metrics"]
