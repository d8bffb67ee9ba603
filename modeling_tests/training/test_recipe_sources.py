"""`lion train` on Parquet, saved datasets and streams: the same samples, resumed exactly, and errors that name keys."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from training.record_files import good_record, write_images, write_json, write_parquet, write_saved, write_shard
from transformers_lion import cli

RECORDS = [good_record(seed % 4, answer=f"Noise {seed}") for seed in range(12)]


@pytest.fixture
def workplace(tmp_path: Path, lion_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, and the same records in several forms."""
    monkeypatch.chdir(tmp_path)
    Path("lion").symlink_to(lion_folder)
    write_images(tmp_path, 4)
    write_json(tmp_path / "a.jsonl", RECORDS)
    write_parquet(tmp_path / "a.parquet", RECORDS, row_group_size=5)
    write_saved(tmp_path / "saved", RECORDS)
    for index in range(2):
        write_shard(tmp_path / f"shard-{index}.tar", RECORDS[index::2], tmp_path)
    return tmp_path


def train(data: list[dict[str, Any]], **keys: Any) -> Any:
    """Run `lion train` on these data; whatever it does not report as an error of the user's is raised."""
    stage = {"stage": "mixture", "data": data, "steps": 4, "save_steps": 2, "batch_size": 2, **keys}
    settings = {
        "output": "out", "model": "lion", "learning_rate": 1e-3, "bf16": False, "stages": [stage],
        "arguments": {"use_cpu": True, "logging_steps": 1},
    }  # fmt: skip
    Path("recipe.yaml").write_text(yaml.safe_dump(settings))
    result = CliRunner().invoke(cli.app, ["train", "--config", "recipe.yaml"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def outcome() -> tuple[list[Any], dict[str, torch.Tensor]]:
    """The log of the run without times, and its weights, which are then removed."""
    log = json.loads(Path("out/mixture/log.json").read_text())
    entries = [
        {name: entry[name] for name in ("step", "epoch", "loss", "grad_norm")} for entry in log if "loss" in entry
    ]
    weights = {name: tensor.clone() for name, tensor in load_file("out/mixture/model/model.safetensors").items()}
    return entries, weights


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def test_a_recipe_names_patterns_and_saved_datasets(workplace: Path) -> None:
    result = train([{"records": "*.parquet"}, {"records": "saved", "images": "."}], steps=1)
    assert result.exit_code == 0, result.stderr
    for records in ("*.parquet", "saved"):
        assert f"{records}: 12 of 12 records are region_level or image_level" in result.stdout


@pytest.mark.parametrize(
    "data",
    [
        [{"records": "shard-{0..1}.tar", "buffer_size": 3}],
        [
            {"records": "a.jsonl", "streaming": True, "buffer_size": 5},
            {"records": "a.parquet", "sample_ratio": 2},
        ],
    ],
    ids=["shards", "mixture"],
)
def test_training_resumes_within_the_data_bit_for_bit(data: list[dict[str, Any]], workplace: Path) -> None:
    result = train(data)
    assert result.exit_code == 0, result.stderr
    expected = outcome()
    shutil.rmtree("out/mixture/model")
    shutil.rmtree("out/mixture/checkpoint-4")
    result = train(data)
    assert result.exit_code == 0, result.stderr
    entries, weights = outcome()
    assert entries == expected[0]
    assert same(weights, expected[1])


def test_bad_samples_of_a_stream_are_reported(workplace: Path) -> None:
    records = [dict(record) for record in RECORDS]
    records[2]["answer"] = " "
    write_shard(workplace / "shard-0.tar", records[:6], workplace)
    assert train([{"records": "shard-*.tar"}], on_error="skip", steps=6, save_steps=6).exit_code == 0
    report = [json.loads(line) for line in Path("out/mixture/records.jsonl").read_text().splitlines()]
    assert {entry["Fault"]["source"] for entry in report} == {"shard-0.tar:002"}
    shutil.rmtree("out")
    assert "shard-0.tar:002: answer is empty" in train([{"records": "shard-*.tar"}], steps=12).stderr


@pytest.mark.parametrize(
    ("data", "keys", "words"),
    [
        ({"records": "none-*.tar"}, {}, "none-*.tar: No file matches this pattern"),
        ({"records": "lion"}, {}, "The folder lion holds"),
        ({"records": "shard-{0..1}.tar"}, {"steps": None}, "set steps; the length of shard-{0..1}.tar is not known"),
        ({"records": "a.jsonl", "streaming": "yes"}, {}, "streaming is 'yes', but must be true or false or null"),
        ({"records": "a.jsonl", "buffer_size": 0}, {}, "buffer_size is 0, but must be above 0"),
        ({"records": "https://example.com/a.tar", "streaming": False}, {}, "can only be streamed"),
        ({"records": "a.jsonl", "stream": True}, {}, "unknown key 'stream'. Did you mean streaming?"),
        (
            {"records": "a.jsonl", "streaming": True},
            {"arguments": {"train_sampling_strategy": "group_by_length"}},
            "train_sampling_strategy needs an index of all records, but a.jsonl is streamed",
        ),
        ({"records": "a.jsonl"}, {"evaluation": [{"records": "a.jsonl", "streaming": True}]}, "cannot be streamed"),
        ({"records": "a.jsonl"}, {"check_images": "all"}, "check_images is 'all', but must be 'exists' or 'decode'"),
    ],
)  # fmt: skip
def test_a_wrong_source_is_one_line_that_names_it(
    data: dict[str, Any], keys: dict[str, Any], words: str, workplace: Path
) -> None:
    result = train([data], **keys)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert words in line
