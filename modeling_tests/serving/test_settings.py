"""The limits, and the name of a model."""

import pytest

from transformers_lion.serving.settings import EXAMPLE_NAME, Limits, served_name


@pytest.mark.parametrize("name", ["max_batch_size", "max_requests", "timeout", "max_megapixels", "drain_timeout"])
def test_a_limit_is_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0, but must be positive"):
        Limits(**{name: 0})


def test_the_largest_image_fits_into_the_memory_for_images() -> None:
    with pytest.raises(ValueError, match="max_decoded_megapixels is 200, but must be at least max_megapixels"):
        Limits(max_megapixels=300)


def test_the_largest_image_fits_into_a_request_in_base64() -> None:
    assert Limits(max_image_bytes=3_000_000).max_body_bytes > 4_000_000


def test_a_model_is_served_under_the_last_part_of_its_name() -> None:
    assert served_name("/models/lion-flant5-xl") == served_name("me/lion-flant5-xl") == "lion-flant5-xl"
    assert served_name(None) == EXAMPLE_NAME
