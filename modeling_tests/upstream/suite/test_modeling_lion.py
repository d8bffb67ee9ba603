"""transformers' common checks on LION's models and configurations."""

import unittest

from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor, random_attention_mask
from tiny_lion import IMAGE_SIZE, NUM_PATCHES, NUM_QUERY_TOKENS, QFORMER, TEXT, VISION, tiny_config

from transformers_lion import (
    LionAggregatorConfig,
    LionConfig,
    LionForConditionalGeneration,
    LionModel,
    LionQFormerConfig,
    LionT5Config,
    LionT5ForConditionalGeneration,
    LionT5Model,
    LionVisionConfig,
)
from transformers_lion.modeling_lion import LionVisionModel


class LionT5ModelTester:
    """Tiny language models with adapters, and inputs for them."""

    is_training = True
    batch_size = 7
    seq_length = 7
    num_hidden_layers = TEXT["num_layers"]
    num_attention_heads = TEXT["num_heads"]
    hidden_size = TEXT["d_model"]

    def get_config(self) -> LionT5Config:
        return LionT5Config(**TEXT)

    def prepare_config_and_inputs_for_common(self):
        batch = [self.batch_size, self.seq_length]
        return self.get_config(), {
            "input_ids": ids_tensor(batch, TEXT["vocab_size"]),
            "attention_mask": random_attention_mask(batch),
            "decoder_input_ids": ids_tensor(batch, TEXT["vocab_size"]),
            "task_type_ids": ids_tensor([self.batch_size], 2),
        }


class LionVisionModelTester:
    """Tiny vision towers, and images for them."""

    is_training = False
    batch_size = 7
    seq_length = NUM_PATCHES
    num_hidden_layers = VISION["num_hidden_layers"]
    num_attention_heads = VISION["num_attention_heads"]
    hidden_size = VISION["hidden_size"]

    def get_config(self) -> LionVisionConfig:
        return LionVisionConfig(**VISION)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": floats_tensor([self.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE])}


class LionModelTester(LionT5ModelTester):
    """Tiny LIONs, and inputs for them."""

    vision_config = VISION

    def __init__(self, visual_branch: str = "both", num_visual_tokens: int = NUM_QUERY_TOKENS + NUM_PATCHES):
        self.visual_branch = visual_branch
        self.encoder_seq_length = num_visual_tokens + self.seq_length

    def get_config(self) -> LionConfig:
        return tiny_config(visual_branch=self.visual_branch)

    def prepare_config_and_inputs_for_common(self):
        batch = [self.batch_size, self.seq_length]
        _, pictures = LionVisionModelTester().prepare_config_and_inputs_for_common()
        _, inputs = super().prepare_config_and_inputs_for_common()
        questions = {
            "qformer_input_ids": ids_tensor(batch, QFORMER["vocab_size"]),
            "qformer_attention_mask": random_attention_mask(batch),
        }
        return self.get_config(), {**pictures, **inputs, **questions}


class LionForConditionalGenerationTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (LionModel, LionForConditionalGeneration)
    additional_model_inputs = ["input_ids", "qformer_input_ids", "task_type_ids", "decoder_input_ids"]
    is_encoder_decoder = True
    _is_composite = True
    test_can_init_all_missing_weights_before_2023 = True  # our files state no year, which counts as before

    def setUp(self):
        self.model_tester = LionModelTester()


class LionQFormerBranchTest(LionForConditionalGenerationTest):
    """The model of the first training stage."""

    def setUp(self):
        self.model_tester = LionModelTester("qformer", NUM_QUERY_TOKENS)


class LionAggregatorBranchTest(LionForConditionalGenerationTest):
    """The model of the second training stage."""

    def setUp(self):
        self.model_tester = LionModelTester("aggregator", NUM_PATCHES)


class LionVisionModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (LionVisionModel,)
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = LionVisionModelTester()


class LionT5ForConditionalGenerationTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (LionT5Model, LionT5ForConditionalGeneration)
    additional_model_inputs = ["task_type_ids", "decoder_input_ids"]
    is_encoder_decoder = True
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = LionT5ModelTester()


class LionConfigTest(unittest.TestCase):
    """`ConfigTester` on the whole configuration and on each part."""

    def setUp(self):
        self.model_tester = LionModelTester()

    def test_config(self):
        ConfigTester(self, config_class=LionConfig, has_text_modality=False, num_query_tokens=5).run_common_tests()

    def test_vision_config(self):
        ConfigTester(
            self, config_class=LionVisionConfig, has_text_modality=False, hidden_size=32, num_attention_heads=4
        ).run_common_tests()

    def test_qformer_config(self):
        ConfigTester(self, config_class=LionQFormerConfig, hidden_size=32, num_attention_heads=4).run_common_tests()

    def test_aggregator_config(self):
        ConfigTester(
            self, config_class=LionAggregatorConfig, has_text_modality=False, hidden_size=32, intermediate_size=37
        ).run_common_tests()

    def test_text_config(self):
        ConfigTester(self, config_class=LionT5Config, d_model=37, adapter_hidden_size=5).run_common_tests()
