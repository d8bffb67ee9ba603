import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, T5Config

from factories import tiny_config
from transformers_lion import LionConfig


def test_the_defaults_are_lion_flant5_xl() -> None:
    config = LionConfig()
    vision, qformer, text = config.vision_config, config.qformer_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.intermediate_size, vision.patch_size) == (
        1408, 39, 6144, 14,
    )  # fmt: skip
    assert (vision.layer_norm_eps, vision.post_layernorm_eps) == (1e-6, 1e-5)
    assert (qformer.hidden_size, qformer.vocab_size, qformer.encoder_hidden_size) == (768, 30523, 1408)
    assert (text.d_model, text.d_ff, text.num_layers, text.num_heads, text.vocab_size) == (2048, 5120, 24, 32, 32128)
    assert config.aggregator_config.vision_feature_layers == [38, 28, 18]
    assert config.aggregator_config.projection_intermediate_size == 4 * 1408
    assert config.is_encoder_decoder


def test_the_activation_is_the_exact_gelu_and_outputs_are_not_scaled(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    for config in (tiny_config(), LionConfig.from_pretrained(tmp_path)):
        assert config.text_config.dense_act_fn == "gelu"
        assert config.text_config.is_gated_act
        assert config.text_config.scale_decoder_outputs is False


def test_every_field_survives_saving_and_loading(tmp_path: Path) -> None:
    config = tiny_config(
        visual_branch="aggregator",
        use_soft_prompt=False,
        text_config={"num_adapters": 1, "adapter_hidden_size": 3, "dense_act_fn": "relu"},
        aggregator_config={"vision_feature_layers": [4, 0], "intermediate_size": 11},
    )
    config.save_pretrained(tmp_path)
    assert LionConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert type(AutoConfig.from_pretrained(tmp_path)) is LionConfig
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["adapter_hidden_size"] == 3


WRONG = [
    ({"aggregator_config": {"vision_feature_layers": [6, 3, 1]}}, ["block 6", "0 to 5"]),
    ({"aggregator_config": {"vision_feature_layers": [-1, 3]}}, ["block -1", "0 to 5"]),
    ({"aggregator_config": {"vision_feature_layers": [5]}}, ["at least 2", "has 1"]),
    ({"aggregator_config": {"num_attention_heads": 5}}, ["aggregator_config", "(5)", "(32)"]),
    ({"aggregator_config": {"hidden_size": 48}}, ["(48)", "(32)"]),
    ({"vision_config": {"num_attention_heads": 3}}, ["vision_config", "(3)", "(32)"]),
    ({"qformer_config": {"num_attention_heads": 0}}, ["qformer_config", "(0)", "(32)"]),
    ({"text_config": {"num_adapters": 3}}, ["is 3", "1 to 2"]),
    ({"text_config": {"num_adapters": 0}}, ["is 0", "1 to 2"]),
    ({"text_config": {"adapter_hidden_size": 0}}, ["is 0", "from 1"]),
    ({"text_config": {"num_decoder_layers": 0}}, ["num_decoder_layers is 0", "from 1"]),
    ({"num_query_tokens": 0}, ["num_query_tokens is 0", "from 1"]),
    ({"num_query_tokens": 10**9}, ["num_query_tokens is 1000000000", "to 16777216"]),
    ({"text_config": {"d_model": -4}}, ["text_config: d_model is -4", "from 1"]),
    ({"text_config": {"num_layers": 10**6}}, ["text_config: num_layers is 1000000", "to 256"]),
    ({"text_config": {"relative_attention_num_buckets": 0}}, ["relative_attention_num_buckets is 0", "from 1"]),
    ({"vision_config": {"num_hidden_layers": 10**6}}, ["vision_config: num_hidden_layers is 1000000", "to 256"]),
    ({"vision_config": {"patch_size": 0}}, ["vision_config: patch_size is 0", "from 1"]),
    ({"vision_config": {"image_size": [56, -1]}}, ["vision_config: image_size is [56, -1]", "from 1"]),
    ({"vision_config": {"patch_size": 29}}, ["image_size is 28", "patch_size (29)"]),
    ({"qformer_config": {"vocab_size": 0}}, ["qformer_config: vocab_size is 0", "from 1"]),
    ({"qformer_config": {"num_hidden_layers": 10**6}}, ["qformer_config: num_hidden_layers is 1000000", "to 256"]),
    ({"aggregator_config": {"intermediate_size": -1}}, ["aggregator_config: intermediate_size is -1", "from 1"]),
    ({"soft_prompt_token_id": 99}, ["(99)", "has 99 tokens"]),
    ({"text_config": {"num_heads": 0}}, ["num_heads is 0", "from 1"]),
    ({"text_config": {"num_task_types": 0}}, ["num_task_types is 0", "from 1"]),
    ({"qformer_config": {"cross_attention_frequency": 0}}, ["is 0", "1 or more"]),
    ({"visual_branch": "all"}, ["'all'", "both", "qformer", "aggregator"]),
]


@pytest.mark.parametrize(("fields", "words"), WRONG)
def test_parts_that_do_not_fit_are_refused_with_both_numbers(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        tiny_config(**fields)
    assert all(word in str(error.value) for word in words), error.value


def test_a_part_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="text_config is a T5Config, but must be a LionT5Config"):
        LionConfig(text_config=T5Config())


def test_taps_are_not_checked_where_no_aggregator_reads_them() -> None:
    fields = {"aggregator_config": {"vision_feature_layers": [38, 28, 18]}}
    assert tiny_config(visual_branch="qformer", **fields).uses_aggregator is False
