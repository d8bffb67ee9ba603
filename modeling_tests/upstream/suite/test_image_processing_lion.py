"""transformers' common checks on LION's image processor."""

import unittest

from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from transformers_lion import LionConfig


class LionImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        super().__init__(parent, size={"height": 18, "width": 20}, do_resize=True, **kwargs)

    def _get_image_processing_classes(self):
        return IMAGE_PROCESSOR_MAPPING[LionConfig]


class LionImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = LionImageProcessingTester
