"""transformers' common training check on LION: 300 steps on one batch, which it must then say by heart."""

import unittest

import torch
from tests.test_training_mixin import TrainingTesterMixin
from tiny_lion import TEXT, tiny_config

from test_modeling_lion import LionModelTester
from transformers_lion import LionConfig, LionForConditionalGeneration


class LionAsTextModel(LionForConditionalGeneration):
    """LION behind the interface of a decoder-only text model, which is the only one that the check speaks.

    An image, a question and a task come with every call; the check's text is LION's answer.
    """

    def sample(self, batch_size: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        _, inputs = LionModelTester().prepare_config_and_inputs_for_common()
        del inputs["decoder_input_ids"]
        return {name: values[:1].expand(batch_size, *values.shape[1:]) for name, values in inputs.items()}

    def forward(self, input_ids=None, labels=None, **kwargs):
        return super().forward(**self.sample(len(input_ids)), labels=labels)

    def generate(self, input_ids, **kwargs):
        start = input_ids.new_full((len(input_ids), 1), self.config.text_config.decoder_start_token_id)
        prompt = {"decoder_input_ids": torch.cat([start, input_ids], dim=1)}
        return super().generate(**self.sample(len(input_ids)), **prompt, **kwargs)[:, 1:]


class LionTrainingTester(LionModelTester):
    def get_config(self) -> LionConfig:
        return tiny_config(vocab_size=TEXT["vocab_size"])


class LionTrainingTest(TrainingTesterMixin, unittest.TestCase):
    model_tester = LionTrainingTester()
    all_model_classes = (LionAsTextModel,)
