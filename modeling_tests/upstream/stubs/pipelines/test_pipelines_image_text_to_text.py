"""Stands in for a module that only transformers' repository has: what the pipeline's mixin asks of one task."""

import unittest
from typing import Any

from fetch_hub_objects_for_ci import url_to_local_path
from transformers import pipeline


class ImageTextToTextPipelineTests(unittest.TestCase):
    """Makes the pipeline and its examples, and checks one answer; loading, batching and dtype are the mixin's."""

    def get_test_pipeline(self, model, tokenizer, processor, image_processor, dtype="float32") -> tuple[Any, list]:
        pipe = pipeline("image-text-to-text", model=model, processor=processor, dtype=dtype, max_new_tokens=5)
        picture = url_to_local_path("picture.png")
        return pipe, [{"images": picture, "text": "what is this"}, {"images": picture, "text": "a cat is the"}]

    def run_pipeline_test(self, pipe, examples) -> None:
        (answer,) = pipe(examples[0]["images"], text=examples[0]["text"])
        assert isinstance(answer["generated_text"], str)
