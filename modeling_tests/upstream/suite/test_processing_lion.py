"""transformers' common checks on LION's processor."""

import unittest

from tests.test_processing_common import ProcessorTesterMixin
from tiny_lion import bert_tokenizer, image_processor, t5_tokenizer

from transformers_lion import LionProcessor


class LionProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = LionProcessor

    @classmethod
    def _setup_image_processor(cls):
        return image_processor()

    @classmethod
    def _setup_tokenizer(cls):
        return t5_tokenizer()

    @classmethod
    def _setup_qformer_tokenizer(cls):
        return bert_tokenizer()
