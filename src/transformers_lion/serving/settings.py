"""The limits of a service, and the name of its model."""

from dataclasses import dataclass
from pathlib import Path

EXAMPLE_NAME = "lion-example"
"""Name under which the example checkpoint is served."""
MEGAPIXEL = 1_000_000
TEXT_BYTES = 1_000_000
"""Bytes of a request body in addition to the image."""


@dataclass(frozen=True)
class Limits:
    """Limits of a service. Each of them is a positive number.

    Attributes:
        max_batch_size: Maximum number of questions per forward pass.
        max_requests: Maximum number of HTTP requests that wait or are answered at the same time. Others get status 503.
        timeout: Seconds from the arrival of a request to its answer. Then it gets status 504, and no forward pass
            begins for it.
        max_image_bytes: Maximum size of an image file.
        max_megapixels: Maximum size of an image.
        max_decoded_megapixels: Maximum size of all decoded images that wait for the model. Others wait undecoded.
        max_new_tokens: Maximum length of an answer that a request can ask for.
        max_questions: Maximum number of questions, phrases or boxes per request.
        max_characters: Maximum length of a question, phrase or list of tags.
        drain_timeout: Seconds that a shutdown waits for running requests.
        allowed_hosts: Hosts from which images can be downloaded, as `HOST` for the default port, or `HOST:PORT`.

    Raises:
        ValueError: If a limit is not positive, or `max_decoded_megapixels` is smaller than `max_megapixels`.
    """

    max_batch_size: int = 8
    max_requests: int = 128
    timeout: float = 60.0
    max_image_bytes: int = 20_000_000
    max_megapixels: float = 50.0
    max_decoded_megapixels: float = 200.0
    max_new_tokens: int = 512
    max_questions: int = 32
    max_characters: int = 4_000
    drain_timeout: float = 120.0
    allowed_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "allowed_hosts" and not value > 0:
                raise ValueError(f"{name} is {value}, but must be positive.")
        if self.max_decoded_megapixels < self.max_megapixels:
            raise ValueError(
                f"max_decoded_megapixels is {self.max_decoded_megapixels:g}, but must be at least max_megapixels, "
                f"which is {self.max_megapixels:g}."
            )

    @property
    def max_body_bytes(self) -> int:
        """Maximum size of a request body: an image in base64, and text."""
        return self.max_image_bytes * 4 // 3 + TEXT_BYTES


def served_name(model: str | None) -> str:
    """Return the name under which a model is served: the last part of its folder or repository.

    Args:
        model: Folder or repository; `None` for the example checkpoint.
    """
    return EXAMPLE_NAME if model is None else Path(model).name


__all__ = ["Limits", "served_name"]
