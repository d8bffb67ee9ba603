"""Two processes compute what one does: with DistributedDataParallel, accelerate's FSDP2 and `shard_model`."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import distributed_run as runs
import pytest
import torch
import torch.distributed as dist
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from factories import tiny_inputs, tiny_labels
from training.launching import ACCELERATE, CONFIGS, TESTS, TORCHRUN, environment
from transformers_lion import LionForConditionalGeneration
from transformers_lion.training import STAGES, load_trainable, save_trainable
from transformers_lion.training.distributed import (
    UNITS,
    check_gradients,
    check_processes,
    check_sharded,
    check_trained_dtypes,
    gather_model,
    prepare_for_fsdp,
    use_float32_reductions,
)

SAVED = ("model", "after_predictions")
STAGE_NAMES = ("image_level", "region_level", "mixture")

Results = dict[str, Any]


def launch(launcher: list[str], *arguments: str | Path) -> Results:
    """The results of two processes that `launcher` starts."""
    process = subprocess.run(
        [sys.executable, "-m", *launcher, str(TESTS / "training" / "distributed_run.py"), *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    line = next(line for line in process.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Results:
    """One process, with the whole batch."""
    return {stage: runs.train_stage(stage, folder / "alone" / stage) for stage in (*STAGE_NAMES, runs.LORA)}


@pytest.fixture(scope="module")
def data_parallel(folder: Path) -> Results:
    return launch([*ACCELERATE, str(CONFIGS / "ddp_8_gpus.yaml")], "trainer", folder / "ddp", *STAGE_NAMES, runs.LORA)


@pytest.fixture(scope="module")
def fully_sharded(folder: Path) -> Results:
    """accelerate's FSDP2, by the configuration for GPUs, on CPUs that accelerate is told are GPUs."""
    launcher = [*ACCELERATE, str(CONFIGS / "fsdp2_8_gpus.yaml")]
    return launch(launcher, "fsdp", folder / "fsdp", "image_level", "mixture", runs.LORA)


@pytest.fixture(scope="module")
def loop(folder: Path) -> Results:
    return launch(TORCHRUN, "loop", folder / "loop")


def flat(metrics: list[list[float]]) -> list[float]:
    return [number for step in metrics for number in step]


@pytest.mark.parametrize("stage", [*STAGE_NAMES, runs.LORA])
def test_data_parallel_steps_are_those_of_one_process(stage: str, data_parallel: Results, alone: Results) -> None:
    """Also after an evaluation, which accelerate takes for a preparation."""
    found = data_parallel[stage]
    assert (found["class"], found["held"], found["changed"]) == ("DistributedDataParallel", 1.0, [])
    assert flat(found["metrics"]) == pytest.approx(flat(alone[stage]["metrics"]), rel=1e-5)


def test_fsdp2_that_would_be_something_else_is_refused_by_name(data_parallel: Results) -> None:
    assert "accelerate uses DistributedDataParallel (MULTI_CPU)" in data_parallel["refusal"]


def test_processes_that_train_apart_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()  # gradients of 1, three of them
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather", lambda sums, own: [value.copy_(own) for value in sums])
    check_gradients(model)
    monkeypatch.setattr(dist, "all_gather", lambda sums, own: [sums[0].copy_(own), sums[1].copy_(own + 1)])
    with pytest.raises(
        ValueError, match=r"2 processes have different gradients: .* range from 3 to 4\..* set eval_on_start=True"
    ):
        check_gradients(model)


@pytest.mark.parametrize("stage", ["image_level", "mixture", runs.LORA])
def test_fsdp2_steps_are_those_of_one_process(stage: str, fully_sharded: Results, alone: Results) -> None:
    found = fully_sharded[stage]
    assert found["class"] == ("FSDPPeftModelForSeq2SeqLM" if stage == runs.LORA else "FSDPLionForConditionalGeneration")
    assert found["held"] == pytest.approx(0.5, abs=0.01)
    assert found["changed"] == []
    expected = flat(alone[stage]["metrics"])
    assert flat(found["metrics"][:1]) == pytest.approx(expected[:2], rel=1e-6)
    assert flat(found["metrics"]) == pytest.approx(expected, rel=1e-5)


def test_fsdp2_goes_on_from_a_checkpoint_and_saves_the_same(fully_sharded: Results, folder: Path) -> None:
    assert fully_sharded["again"]["metrics"] == fully_sharded["mixture"]["metrics"]
    first, again = (load_file(folder / "fsdp" / "mixture" / name / "model.safetensors") for name in SAVED)
    assert first.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_a_model_that_fsdp2_trained_is_saved_like_any_other(
    fully_sharded: Results, alone: Results, folder: Path
) -> None:
    saved, expected = folder / "fsdp" / "mixture" / "model", folder / "alone" / "mixture" / "model"
    config = json.loads((saved / "config.json").read_text())
    assert config == json.loads((expected / "config.json").read_text())
    model, reference = map(LionForConditionalGeneration.from_pretrained, (saved, expected))
    batch = {**tiny_inputs(), "labels": tiny_labels()}
    assert model(**batch).loss.item() == pytest.approx(reference(**batch).loss.item(), rel=1e-5)


@pytest.mark.parametrize("launched", ["ddp", "fsdp"])
def test_lora_of_two_processes_goes_onto_the_base(launched: str, folder: Path, request: pytest.FixtureRequest) -> None:
    for name in ("alone", {"ddp": "data_parallel", "fsdp": "fully_sharded"}[launched]):
        request.getfixturevalue(name)
    found, expected = (
        PeftModel.from_pretrained(runs.stage_model("mixture"), folder / name / runs.LORA / "model").eval()
        for name in (launched, "alone")
    )
    batch = {**tiny_inputs(), "labels": tiny_labels()}
    before = runs.stage_model("mixture").eval()(**batch).loss.item()
    assert found(**batch).loss.item() == pytest.approx(expected(**batch).loss.item(), rel=1e-5)
    assert found(**batch).loss.item() != pytest.approx(before, rel=1e-3)


def test_fsdp2_generates_what_the_model_alone_does_though_lengths_differ(fully_sharded: Results, folder: Path) -> None:
    model = LionForConditionalGeneration.from_pretrained(folder / "fsdp" / "mixture" / "model")
    inputs = tiny_inputs()
    for row, found in enumerate(fully_sharded["again"]["predictions"]):
        own = {name: column[row : row + 1] for name, column in inputs.items()}
        expected = model.generate(**own, max_new_tokens=4 + 4 * (row // 2))[0].tolist()
        assert found == expected + [0] * (len(found) - len(expected))


def test_a_sharded_loop_is_that_of_one_process(loop: Results) -> None:
    assert loop["held"] == pytest.approx(0.5, abs=0.01)
    assert loop["changed"] == []
    assert loop["losses"] == pytest.approx(runs.run_steps(runs.stage_model("mixture")), rel=1e-5)


@pytest.mark.parametrize("when", ["first_answers", "answers"])
def test_a_sharded_model_generates_what_it_does_as_a_whole(when: str, loop: Results, folder: Path) -> None:
    model = runs.stage_model("mixture").eval()
    if when == "answers":
        model = LionForConditionalGeneration.from_pretrained(folder / "loop" / "whole")
    inputs = tiny_inputs()
    for rank, found in enumerate(loop[when]):
        own = {name: column.chunk(2)[rank] for name, column in inputs.items()}
        assert found == model.generate(**own, num_beams=2, max_new_tokens=4 + 4 * rank).tolist()


def test_what_was_trained_sharded_fits_onto_the_base(loop: Results, folder: Path) -> None:
    base = runs.stage_model("mixture")
    assert load_trainable(base, folder / "loop" / "trainable") == "mixture"
    whole = LionForConditionalGeneration.from_pretrained(folder / "loop" / "whole")
    for (name, found), wanted in zip(base.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(found, wanted), name


def test_a_bfloat16_base_is_sharded_beside_adapters_in_float32(loop: Results) -> None:
    assert loop["kept_dtypes"] == ["torch.bfloat16", "torch.float32"]
    assert loop["bfloat16_losses"] == pytest.approx(loop["losses"], rel=0.02)


def test_lora_on_a_bfloat16_base_is_sharded_and_trains_in_float32(loop: Results) -> None:
    assert loop["lora_dtypes"] == ["torch.bfloat16", "torch.float32"]
    assert loop["sharded_lora_dtypes"] == ["torch.float32"]
    assert loop["lora_losses"] == pytest.approx(runs.run_steps(runs.stage_model(runs.LORA)), rel=0.02)


def test_a_model_that_is_not_sharded_is_found_out_by_name() -> None:
    model = runs.stage_model("mixture")
    with pytest.raises(
        ValueError, match=r"298 parameters of this LionForConditionalGeneration are not sharded, .* vision_"
    ):
        check_sharded(model)
    with pytest.raises(ValueError, match=r"298 of the 298 parameters of this DataParallel are not .* module.vision_"):
        check_sharded(nn.DataParallel(model))


def test_processes_that_do_not_know_of_each_other_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun sets it; the Trainer in this process finds no other
    with pytest.raises(ValueError, match=r"2 processes were started, but the Trainer knows of 1\."):
        check_processes(SimpleNamespace(world_size=1))
    check_processes(SimpleNamespace(world_size=2))


def test_a_model_that_is_not_sharded_is_its_own_whole() -> None:
    model = runs.stage_model("mixture")
    assert gather_model(model) is model


class StandInGathering:
    """A stand-in for DeepSpeed's `GatheredParameters`, which makes pieces whole as long as it lasts."""

    wholes: dict[int, torch.Tensor] = {}

    def __init__(self, parameters: list[Any]):
        self.parameters = parameters

    def __enter__(self) -> None:
        for parameter in self.parameters:
            parameter.data = self.wholes[parameter.ds_id]

    def __exit__(self, *error: Any) -> None:
        for parameter in self.parameters:
            parameter.data = torch.empty(0)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_zero3_holds_in_pieces_is_gathered_to_be_saved(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "deepspeed.runtime", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "deepspeed.runtime.zero", SimpleNamespace(GatheredParameters=StandInGathering))
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    model, expected = runs.stage_model("mixture"), runs.stage_model("mixture")
    for index, parameter in enumerate(model.parameters()):
        parameter.ds_id = index
        StandInGathering.wholes[index], parameter.data = parameter.data, torch.empty(0)
    whole = gather_model(model)
    if rank > 0:
        assert whole is None
        return
    for (name, found), wanted in zip(whole.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(found, wanted[1]), name
        assert found.requires_grad == wanted[1].requires_grad
    save_trainable(whole, tmp_path, "mixture")
    assert load_trainable(expected, tmp_path) == "mixture"
    assert all(parameter.numel() == 0 for parameter in model.parameters())


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_accelerate_is_told_of_the_units_that_the_stage_has(stage: str) -> None:
    model = runs.stage_model(stage)
    before = list(model.state_dict())
    prepare_for_fsdp(model, "cpu")
    absent = {
        "image_level": {"LionAggregatorLayer", "LionAggregatorProjection"},
        "region_level": {"InstructBlipQFormerEmbeddings", "InstructBlipQFormerLayer"},
        "mixture": set(),
    }
    assert model._no_split_modules == [name for name in UNITS if name not in absent[stage]]
    tied = [f"language_model.{part}.embed_tokens.weight" for part in ("encoder", "decoder")]
    assert list(model.state_dict()) == [name for name in before if name not in tied]
    model.load_state_dict(model.state_dict())


def test_a_unit_that_trains_two_dtypes_is_refused() -> None:
    model = runs.bfloat16_base(runs.stage_model("mixture"))
    check_trained_dtypes(model)
    model.language_model.encoder.block[0].requires_grad_(True)
    with pytest.raises(ValueError, match=r"LionT5Block trains layer\.0.* in torch.bfloat16, but .* in torch.float32"):
        check_trained_dtypes(model)


def test_gradients_are_summed_up_in_float32() -> None:
    policy = SimpleNamespace(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16, output_dtype=torch.bfloat16)
    plugin = SimpleNamespace(mixed_precision_policy=policy)
    use_float32_reductions(plugin)
    found = plugin.mixed_precision_policy
    assert (found.param_dtype, found.reduce_dtype, found.output_dtype) == (torch.bfloat16, torch.float32, None)


@pytest.mark.parametrize("name", ["ddp_8_gpus", "fsdp2_8_gpus", "fsdp2_2_nodes"])
def test_accelerate_knows_each_key_of_a_configuration(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    options = {action.dest for action in launch_command_parser()._actions}
    assert {*config.fsdp_config, *config.parallelism_config} <= options
    shape = config.parallelism_config or {"": config.num_processes}
    assert torch.tensor(list(shape.values())).prod() == config.num_processes == 8 * config.num_machines


def test_deepspeeds_configuration_is_stage_three_and_leaves_the_trainer_its_own() -> None:
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    config = HfDeepSpeedConfig(str(CONFIGS / "deepspeed_zero3.json"))
    assert config.is_zero3()
    assert not config.is_offload()
    automatic = {name for name, value in config.config.items() if value == "auto"}
    assert automatic == {
        "gradient_clipping", "gradient_accumulation_steps", "train_batch_size", "train_micro_batch_size_per_gpu",
    }  # fmt: skip


def test_the_stages_are_those_that_are_trained_here() -> None:
    assert {stage.name for stage in STAGES.values() if stage.number < 4} == set(STAGE_NAMES)
