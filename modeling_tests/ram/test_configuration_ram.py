"""RamConfig: defaults, round trip, and what does not fit together."""

import re
from pathlib import Path
from typing import Any

import pytest

from ram.factories import NAMES, tiny_config
from transformers_lion.ram import RamConfig


def test_the_defaults_are_the_released_models() -> None:
    config = RamConfig()
    assert (config.num_labels, config.image_size, config.feature_grid) == (4585, (384, 384), (12, 12))
    assert (config.vision_config.hidden_size, config.vision_config.layer_norm_eps) == (1536, 1e-5)
    assert config.layer_norm_eps == 1e-12


@pytest.mark.parametrize("fields", [{}, {"thresholds": [0.1, 0.2, 0.3, 0.4, 0.5]}, {"loss_clip": 0.0}])
def test_a_configuration_survives_saving(fields: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(**fields)
    config.save_pretrained(tmp_path)
    loaded = RamConfig.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == {**config.to_diff_dict(), "transformers_version": loaded.transformers_version}
    assert list(loaded.id2label.values()) == list(NAMES)
    assert loaded.thresholds == config.thresholds


@pytest.mark.parametrize("count", [1, 2, 7])
def test_nameless_tags_survive_saving(count: int, tmp_path: Path) -> None:
    RamConfig(num_labels=count).save_pretrained(tmp_path)
    loaded = RamConfig.from_pretrained(tmp_path)
    assert loaded.num_labels == len(loaded.thresholds) == count


def test_tags_without_thresholds_get_the_default_one() -> None:
    assert tiny_config(default_threshold=0.8).thresholds == [0.8] * len(NAMES)


@pytest.mark.parametrize(
    ("fields", "numbers"),
    [
        ({"thresholds": [0.5, 0.5]}, ("5 tags", "2 thresholds")),
        ({"thresholds": [0.5, 0.5, 0.5, 0.5, 1.5]}, ("'large'", "1.5")),
        ({"thresholds": [float("nan")] * 5}, ("'red'", "nan")),
        ({"names": ["a", "b", "a"]}, ("'a'", "ids 0", "2")),
        ({"num_attention_heads": 3}, ("(3)", "(16)")),
        ({"vision_config": {"window_size": 5}}, ("4x4", "(5)")),
        ({"vision_config": {"patch_size": 0}}, ("patch_size is 0", "from 1")),
        ({"vision_config": {"depths": [1, 10**6]}}, ("depths is [1, 1000000]", "to 256")),
        ({"hidden_size": -16}, ("hidden_size is -16", "from 1")),
        ({"num_hidden_layers": 10**6}, ("num_hidden_layers is 1000000", "to 256")),
    ],
)
def test_incompatible_fields_are_refused_with_both_values(fields: dict[str, Any], numbers: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=".*".join(map(re.escape, numbers))):
        tiny_config(**fields)


def test_gaps_in_the_tag_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="no id 1"):
        RamConfig(id2label={0: "a", 2: "b"})


def test_the_grid_is_halved_between_stages_and_padded_if_odd() -> None:
    config = tiny_config(vision_config={"image_size": (36, 50), "window_size": 4})
    assert config.feature_grid == (5, 7)  # 9 x 13 patches
