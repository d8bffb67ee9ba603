"""The example checkpoint, loaded once, and a server for it."""

from collections.abc import Iterator

import pytest

from serving.running import Running, data_uri, running
from transformers_lion import Lion
from transformers_lion.example import example_image, sketch


@pytest.fixture(scope="session")
def lion() -> Lion:
    return Lion.from_pretrained()


@pytest.fixture(scope="session")
def server(lion: Lion) -> Iterator[Running]:
    """A server with the default limits."""
    with running(lambda: lion) as found:
        yield found


@pytest.fixture(scope="session")
def scene() -> str:
    """The example image, in a small size."""
    return data_uri(example_image().resize((100, 100)))


@pytest.fixture(scope="session")
def drawing() -> str:
    """Another image, which is not square."""
    return data_uri(sketch(160, 120))
