"""`lion train` on two processes: the losses of one, through `kill -9`, and files that one process can go on with."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from training.launching import ACCELERATE, CONFIGS, TESTS, TORCHRUN, environment
from training.record_files import good_record, write_images, write_json
from transformers_lion import LionForConditionalGeneration
from transformers_lion.training import load_trainable

SCRIPT = TESTS / "training" / "command_run.py"

RECIPE: dict[str, Any] = {
    "model": "lion",
    "output": "out",
    "steps": 3,
    "save_steps": 2,
    "learning_rate": 1e-3,
    "bf16": False,
    "trainable_only": True,
    "data": [{"records": "records.json"}],
    "stages": [{"stage": "mixture"}],
    "arguments": {"use_cpu": True, "logging_steps": 1},
}
"""Whole checkpoints of some stages would be written again and again; these are of what is trained."""

FSDP_FILES = ("pytorch_model_fsdp.bin", "pytorch_model_fsdp_0", "model.safetensors")


@pytest.fixture(scope="module")
def workplace(lion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, eight records, and a model without dropout, which falls otherwise in each process."""
    folder = tmp_path_factory.mktemp("workplace")
    shutil.copytree(lion_folder, folder / "lion")
    config = json.loads((folder / "lion" / "config.json").read_text())
    (folder / "lion" / "config.json").write_text(json.dumps(without_dropout(config)))
    write_images(folder, 4)
    boxes = [good_record(seed, category="ref", answer=f"[0.{seed}00,0.200,0.700,0.800]") for seed in range(4)]
    write_json(folder / "records.json", [good_record(seed) for seed in range(4)] + boxes)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    pieces = (CONFIGS / "fsdp2_8_gpus.yaml").read_text().replace("FULL_STATE_DICT", "SHARDED_STATE_DICT")
    (folder / "pieces.yaml").write_text(pieces)
    return folder


def without_dropout(value: Any) -> Any:
    """A configuration in which all dropout is 0."""
    if not isinstance(value, dict):
        return value
    return {key: 0.0 if "dropout" in key else without_dropout(entry) for key, entry in value.items()}


def lion_train(workplace: Path, launcher: list[str], *changes: str, kill_at: int = 0) -> int:
    """Run the command; its exit code."""
    process = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), "recipe.yaml", str(kill_at), *changes],
        cwd=workplace,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    if process.returncode and not kill_at:
        raise AssertionError(process.stderr[-3000:])
    return process.returncode


def two(workplace: Path, launcher: list[str], output: str, kill_at: int = 0) -> int:
    """Two processes with a batch of one each."""
    return lion_train(workplace, ["-m", *launcher], f"output={output}", "batch_size=1", kill_at=kill_at)


LAUNCHERS = {
    "ddp": TORCHRUN,
    "fsdp": [*ACCELERATE, str(CONFIGS / "fsdp2_8_gpus.yaml")],
    "pieces": [*ACCELERATE, "pieces.yaml"],
}


@pytest.fixture(scope="module")
def alone(workplace: Path) -> Path:
    """What one process with a batch of two makes."""
    lion_train(workplace, [], "output=alone", "batch_size=2")
    return workplace / "alone" / "mixture"


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.long if name != "ddp" else ()) for name in LAUNCHERS]
)
def resumed(request: pytest.FixtureRequest, workplace: Path) -> Path:
    """What two processes make that are killed after step 3, of which nothing is saved, and started again.

    Those with checkpoints in pieces are not killed, for the sake of time.
    """
    launcher, output = LAUNCHERS[request.param], workplace / request.param / "mixture"
    if request.param != "pieces":
        assert two(workplace, launcher, request.param, kill_at=3) != 0
        assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-2"]
        assert not (output / "model").exists()
    two(workplace, launcher, request.param)
    return output


def losses(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of each entry of a stage's log."""
    log = json.loads((folder / "log.json").read_text())
    return [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]


def test_processes_that_were_killed_go_on_with_the_losses_of_one(resumed: Path, alone: Path) -> None:
    assert [step for step, _ in losses(resumed)] == [1, 2, 3]
    assert [loss for _, loss in losses(resumed)] == pytest.approx([loss for _, loss in losses(alone)], rel=1e-5)


def test_what_they_trained_goes_onto_the_base(resumed: Path, workplace: Path) -> None:
    checkpoint = resumed / "checkpoint-3"
    assert not [name for name in FSDP_FILES if (checkpoint / name).exists()]
    base = LionForConditionalGeneration.from_pretrained(workplace / "lion")
    assert load_trainable(base, checkpoint) == "mixture"
    model = LionForConditionalGeneration.from_pretrained(resumed / "model")
    for (name, found), wanted in zip(base.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(found, wanted), name


def test_their_model_is_saved_as_that_of_one_process(resumed: Path, alone: Path) -> None:
    names = {path.relative_to(alone / "model") for path in (alone / "model").rglob("*")}
    assert {path.relative_to(resumed / "model") for path in (resumed / "model").rglob("*")} == names
    found, expected = (load_file(folder / "model" / "model.safetensors") for folder in (resumed, alone))
    assert found.keys() == expected.keys()
    assert all(torch.allclose(tensor, expected[name], atol=5e-4) for name, tensor in found.items())
    config, wanted = (json.loads((folder / "model" / "config.json").read_text()) for folder in (resumed, alone))
    assert config == wanted


@pytest.mark.parametrize("resumed", ["fsdp"], indirect=True)
def test_processes_that_were_killed_at_the_end_only_save_their_model(resumed: Path, workplace: Path) -> None:
    saved = load_file(resumed / "model" / "model.safetensors")
    expected = {name: tensor.clone() for name, tensor in saved.items()}  # no view of the file
    shutil.rmtree(resumed / "model")
    log = losses(resumed)
    two(workplace, LAUNCHERS["fsdp"], "fsdp", kill_at=1)  # a step would kill them
    found = load_file(resumed / "model" / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert losses(resumed) == log


@pytest.mark.slow
def test_processes_resume_within_a_stream(workplace: Path) -> None:
    records = [good_record(seed % 4, answer=f"Noise {seed}") for seed in range(11)]
    write_json(workplace / "stream.jsonl", records)
    data = "data=[{records: stream.jsonl, streaming: true, buffer_size: 2}]"
    for output, kill_at in (("whole", 0), ("stopped", 3), ("stopped", 0)):
        changes = f"output={output}", "batch_size=1", "num_workers=2", data
        lion_train(workplace, ["-m", *TORCHRUN], *changes, kill_at=kill_at)
    assert losses(workplace / "stopped" / "mixture") == losses(workplace / "whole" / "mixture")
    checkpoint = workplace / "whole" / "mixture" / "checkpoint-3"
    positions = [json.loads((checkpoint / f"data_state_{rank}.json").read_text())["positions"] for rank in range(2)]
    assert [sorted(entry) for entry in positions] == [["0", "1"]] * 2
