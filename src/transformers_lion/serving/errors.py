"""Errors of the service, in the format of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`.

OpenAI's client shows its user `message` and nothing else. It sends a request with status 408, 409, 429 or 5xx three
times, unless the header `x-should-retry` is "false".
"""

from typing import Any

from fastapi import HTTPException

RETRY_AFTER = "1"
"""Seconds after which a client should retry."""


class ServiceError(HTTPException):
    """An error that the client sees.

    Args:
        status: HTTP status.
        message: A sentence for the client.
        code: A word for programs, such as "invalid_image".
        param: Parameter of the request that is wrong, such as "messages[0].content".
        should_retry: Whether the same request can succeed later.
    """

    def __init__(self, status: int, message: str, code: str, param: str | None = None, should_retry: bool = False):
        retry = {"x-should-retry": "true", "Retry-After": RETRY_AFTER} if should_retry else {"x-should-retry": "false"}
        super().__init__(status, message, headers=retry)
        self.code = code
        self.param = param

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        kind = "server_error" if self.status_code >= 500 else "invalid_request_error"
        param = None if self.param is None else encodable(self.param)
        return {"error": {"message": encodable(self.detail), "type": kind, "param": param, "code": self.code}}


def encodable(text: str) -> str:
    """Return a text without lone surrogates, which a request can contain, but UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ServiceError:
    """Return the error for an invalid request."""
    return ServiceError(400, message, code, param)


def too_large(message: str, param: str | None = None) -> ServiceError:
    """Return the error for a request with too many bytes."""
    return ServiceError(413, message, "too_large", param)


def overloaded(limit: int) -> ServiceError:
    """Return the error for a request that arrives while `limit` others are waiting or being answered."""
    message = f"The service is busy: {limit} requests are waiting or being answered, which is its limit. Retry later."
    return ServiceError(503, message, "overloaded", should_retry=True)


def shutting_down() -> ServiceError:
    """Return the error for a request that arrives during a shutdown."""
    return ServiceError(503, "The service is shutting down. Retry later.", "shutting_down", should_retry=True)


def loading() -> ServiceError:
    """Return the error for a request that arrives before the model is loaded."""
    return ServiceError(503, "The model is still loading. Retry later.", "loading", should_retry=True)


def timed_out(timeout: float) -> ServiceError:
    """Return the error for a request whose time is over. Clients do not retry it: that would cause the same work."""
    return ServiceError(504, f"The answer took longer than {timeout:g} seconds, which is the limit.", "timeout")


def not_received(timeout: float) -> ServiceError:
    """Return the error for a request of which nothing more arrives."""
    return ServiceError(408, f"No more of the request arrived for {timeout:g} seconds.", "not_received")


def failed(error: BaseException) -> ServiceError:
    """Return the error for a request on which the model fails. The service's log has the traceback."""
    kind = type(error).__name__
    return ServiceError(
        500, f"The model failed on this request with {kind}. The log of the service has more.", "failed"
    )


__all__ = [
    "ServiceError",
    "failed",
    "invalid",
    "loading",
    "not_received",
    "overloaded",
    "shutting_down",
    "timed_out",
    "too_large",
]
