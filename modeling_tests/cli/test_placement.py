import json

import pytest
import torch
from transformers import AutoModelForImageTextToText

from transformers_lion import example_checkpoint

from .command_line import lion, refusal


def placement(*limits: str) -> dict[str, dict[str, int]]:
    options = [word for limit in limits for word in ("--max-memory", limit)]
    return json.loads("\n".join(lion("info", example_checkpoint(), *options, "--json").lines))["placement"]


def test_all_weights_have_a_place_and_limits_are_kept() -> None:
    found = placement("0=8MiB", "cpu=4MiB")
    total = json.loads("\n".join(lion("info", example_checkpoint(), "--json").lines))["memory"]["float32"]["weights"]
    assert found["limits"] == {"0": 8 << 20, "cpu": 4 << 20}
    assert sum(found["float32"].values()) == total
    assert sum(found["bfloat16"].values()) == total / 2
    assert total / 2 < sum(found["float16"].values()) < total  # some stay in float32
    for sizes in (found["float32"], found["bfloat16"], found["float16"]):
        assert 0 < sizes["0"] <= 8 << 20
        assert 0 <= sizes["cpu"] <= 4 << 20
    assert found["float32"]["disk"] > found["bfloat16"]["disk"] >= 0


def test_places_are_those_of_transformers() -> None:
    model = AutoModelForImageTextToText.from_pretrained(
        example_checkpoint(), device_map="auto", max_memory={"cpu": 8 << 20}
    )
    in_memory = sum(p.numel() * 4 for p in model.parameters() if p.device != torch.device("meta"))
    assert placement("8MiB")["float32"]["cpu"] == in_memory


def test_people_read_devices_and_sizes() -> None:
    lines = lion("info", example_checkpoint(), "--max-memory", "0=8MiB", "--max-memory", "cpu=1GB").lines
    assert 'Weights with device_map="auto" and at most GPU 0 8.0 MiB, cpu 953.7 MiB' in lines
    assert any(line.startswith("  bfloat16  GPU 0 ") and "disk" not in line for line in lines)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (["gpu=3GB"], "--max-memory gpu=3GB: 'gpu' is not a device"),
        (["0=much"], "--max-memory 0=much: 'much' is not a size; use for example 20GB"),
        (["3GB", "cpu=2GB"], "--max-memory lists cpu twice."),
    ],
)
def test_a_limit_that_is_none_is_named(limits: list[str], words: str) -> None:
    options = [word for limit in limits for word in ("--max-memory", limit)]
    assert words in refusal("info", example_checkpoint(), *options)
