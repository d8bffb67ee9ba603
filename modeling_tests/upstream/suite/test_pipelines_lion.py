"""transformers' common checks on LION's pipeline, with a tiny model in a folder instead of one from the Hub."""

import unittest

from tests.test_pipeline_mixin import PipelineTesterMixin

from transformers_lion import LionForConditionalGeneration


class LionPipelineTest(PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = {"image-text-to-text": LionForConditionalGeneration}
