"""transformers' common checks of sharded training and inference, on LION's language model."""

import unittest

from tests.test_expert_parallel_mixin import ExpertParallelTesterMixin
from tests.test_fsdp_mixin import FSDPTesterMixin
from tests.test_tensor_parallel_mixin import TensorParallelTesterMixin

from test_modeling_lion import LionT5ModelTester
from transformers_lion import LionT5ForConditionalGeneration


class LionParallelismTest(FSDPTesterMixin, TensorParallelTesterMixin, ExpertParallelTesterMixin, unittest.TestCase):
    all_model_classes = (LionT5ForConditionalGeneration,)
    model_tester = LionT5ModelTester()
