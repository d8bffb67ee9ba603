"""The stages of training: what each trains, that all of it learns, and that nothing else changes."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from factories import tiny_config, tiny_inputs, tiny_labels, tiny_model
from recipe import GOLDENS
from transformers_lion import LionConfig, LionForConditionalGeneration
from transformers_lion.configuration_lion import TASK_TYPES
from transformers_lion.training import STAGES, Stage, apply_stage, get_stage
from transformers_lion.training.stages import PARTS, part_of, reaches_no_output

EACH_STAGE = pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES.keys())

XL: dict[str, Any] = {}
XXL: dict[str, Any] = {"text_config": {"d_model": 4096, "d_ff": 10240, "num_heads": 64}}

QFORMER = ("query_tokens.", "qformer.", "vision_model.post_layernorm.", "language_projection.", "soft_prompt.")
AGGREGATOR = ("aggregator.", "aggregator_projection.", "soft_prompt.")
TRAINED = {"image_level": QFORMER, "region_level": AGGREGATOR}
TRAINED["mixture"] = TRAINED["released"] = QFORMER + AGGREGATOR
NO_OUTPUT = ("qformer.encoder.layer.1.intermediate.", "qformer.encoder.layer.1.output.")


def is_trained(name: str, stage: Stage) -> bool:
    """Whether the paper's stage trains a parameter, said without the code under test."""
    return (".adapter." in name or name.startswith(TRAINED[stage.name])) and not name.startswith(NO_OUTPUT)


def fields_of(stage: Stage) -> dict[str, Any]:
    """What a configuration says for that stage."""
    return {"visual_branch": stage.visual_branch, "text_config": {"num_adapters": stage.num_adapters}}


def staged_model(stage: Stage) -> LionForConditionalGeneration:
    """The small model that the stage trains, frozen and thawed for it."""
    model = tiny_model(**fields_of(stage))
    apply_stage(model, stage)
    return model


def batch_of(stage: Stage) -> dict[str, torch.Tensor]:
    """A training batch whose tasks are the stage's."""
    tasks = torch.tensor([TASK_TYPES.index(task) for task in stage.task_types])
    return {**tiny_inputs(), "labels": tiny_labels(), "task_type_ids": tasks.repeat(4)[:4]}


def train(model: LionForConditionalGeneration, stage: Stage, folder: Path, **settings: Any) -> None:
    """Three steps of the stock Trainer."""
    batch = batch_of(stage)
    samples = [{name: column[row] for name, column in batch.items()} for row in range(4)]
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=4, max_steps=3, learning_rate=1e-2, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True, remove_unused_columns=False, seed=0, **settings,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=samples).train()


# --- the stages as data -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "name"), [(1, "image_level"), (2, "region_level"), (3, "mixture"), (4, "released")])
def test_a_stage_is_found_by_name_and_by_number(number: int, name: str) -> None:
    assert get_stage(name) is get_stage(number) is get_stage(str(number)) is get_stage(STAGES[name]) is STAGES[name]


@pytest.mark.parametrize("unknown", ["stage1", 0, 5])
def test_an_unknown_stage_is_refused_with_the_list_of_stages(unknown: Any) -> None:
    with pytest.raises(
        ValueError, match=r"image_level \(1\), region_level \(2\), mixture \(3\), released \(4\)"
    ) as info:
        get_stage(unknown)
    assert repr(unknown) in str(info.value)


@EACH_STAGE
def test_stages_name_task_types_that_the_router_knows(stage: Stage) -> None:
    assert stage.task_types
    assert set(stage.task_types) <= set(TASK_TYPES)


@EACH_STAGE
def test_every_part_that_a_stage_trains_is_in_its_model(stage: Stage) -> None:
    found = {part_of(name) for name, _ in tiny_model(**fields_of(stage)).named_parameters()}
    assert found == {*stage.parts, "vision_model", "language_model"}


def test_a_parameter_of_another_model_belongs_to_no_part() -> None:
    with pytest.raises(ValueError, match=r"base_model\.model\.qformer\.x is not a parameter"):
        part_of("base_model.model.qformer.x")


# --- what is trainable --------------------------------------------------------------------------------------------


@EACH_STAGE
def test_trainable_parameters_get_a_gradient_and_frozen_ones_none(stage: Stage) -> None:
    model = staged_model(stage).train()
    model(**batch_of(stage)).loss.backward()
    for name, parameter in model.named_parameters():
        if is_trained(name, stage):
            assert parameter.grad is not None, name
            assert parameter.grad.count_nonzero(), name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_what_reaches_no_output_is_exactly_what_has_a_zero_gradient(num_layers: int) -> None:
    model = tiny_model(qformer_config={"num_hidden_layers": num_layers})
    model(**tiny_inputs(), labels=tiny_labels()).loss.backward()
    without = {name for name, parameter in model.named_parameters() if not parameter.grad.count_nonzero()}
    assert len(without) == 6
    assert without == {name for name, _ in model.named_parameters() if reaches_no_output(name, model.config)}


@EACH_STAGE
def test_data_parallel_training_finds_no_parameter_without_a_gradient(stage: Stage) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(staged_model(stage).train())
        for _ in range(2):  # the second step is where a parameter without a gradient is an error
            model(**batch_of(stage)).loss.backward()
    finally:
        torch.distributed.destroy_process_group()


@EACH_STAGE
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_training_changes_every_trainable_tensor_and_no_bit_of_the_frozen_ones(stage: Stage, tmp_path: Path) -> None:
    model = staged_model(stage)
    before = copy.deepcopy(dict(model.named_parameters()))
    buffers = copy.deepcopy(dict(model.named_buffers()))
    train(model, stage, tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != is_trained(name, stage), name
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


@EACH_STAGE
def test_a_model_at_its_initial_values_learns_in_every_part(stage: Stage, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LionForConditionalGeneration(tiny_config(**fields_of(stage)))
    apply_stage(model, stage)
    before = copy.deepcopy(dict(model.named_parameters()))
    train(model, stage, tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != is_trained(name, stage), name


def test_a_second_stage_thaws_what_the_first_froze() -> None:
    model = staged_model(STAGES["mixture"])
    expected = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.requires_grad_(False)
    apply_stage(model, "released")
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == expected


@pytest.mark.parametrize(
    ("stage", "fields", "words"),
    [
        (1, {}, ["'qformer' and num_adapters 1", "'both' and 2"]),
        (2, {"visual_branch": "aggregator"}, ["'aggregator' and num_adapters 1", "'aggregator' and 2"]),
        (3, {"text_config": {"num_adapters": 1}}, ["'both' and num_adapters 2", "'both' and 1"]),
    ],
)
def test_a_model_of_another_stage_is_refused_and_left_alone(
    stage: int, fields: dict[str, Any], words: list[str]
) -> None:
    model = tiny_model(**fields)
    with pytest.raises(ValueError, match=f"Stage {stage}") as info:
        apply_stage(model, stage)
    for word in words:
        assert word in str(info.value).replace("visual_branch ", "")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_quantized_part_that_should_train_is_refused() -> None:
    model = tiny_model()
    weight = model.language_projection.weight
    model.language_projection.weight = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
    with pytest.raises(
        ValueError, match=r"Stage 3 trains language_projection\.weight, but it is quantized \(torch.int8\)"
    ):
        apply_stage(model, 3)


# --- the vision tower's mode --------------------------------------------------------------------------------------


@EACH_STAGE
def test_a_frozen_vision_tower_stays_in_eval_mode_while_the_rest_trains(stage: Stage) -> None:
    model = tiny_model(**fields_of(stage)).train()
    apply_stage(model, stage)
    for _ in range(2):
        assert model.training
        assert model.language_model.encoder.block[0].training
        assert not any(module.training for module in model.vision_model.modules())
        model.eval()
        torch.nn.Sequential(model).train()  # as a wrapper of the Trainer's does it


def test_dropout_of_a_frozen_vision_tower_is_off_during_training() -> None:
    model = tiny_model(vision_config={"attention_dropout": 0.5})
    pixel_values = tiny_inputs()["pixel_values"]
    expected = model.vision_model(pixel_values).last_hidden_state
    apply_stage(model, "mixture")
    assert torch.equal(model.train().vision_model(pixel_values).last_hidden_state, expected)


@pytest.mark.parametrize("thawed", ["embeddings.class_embedding", "encoder.layers.0.mlp.fc1.weight"])
def test_a_vision_tower_that_trains_is_in_training_mode(thawed: str) -> None:
    model = tiny_model()
    apply_stage(model, "mixture")
    model.vision_model.get_parameter(thawed).requires_grad_(True)
    assert model.train().vision_model.training


# --- the report ---------------------------------------------------------------------------------------------------


def reference_counts(size: str) -> int:
    """Numbers that the reference trains in its last stages."""
    rows = json.loads((GOLDENS / "keys" / f"{size}.json").read_text())
    return sum(
        math.prod(shape) * (len(range(*repeats)) if repeats and isinstance(repeats[0], int) else 1)
        for _, shape, is_trained, repeats in rows
        if is_trained
    )


@pytest.mark.parametrize(
    ("size", "fields", "trainable"), [("lion_xl", XL, 276_846_432), ("lion_xxl", XXL, 315_715_424)]
)
def test_the_mixture_trains_what_the_reference_trains_but_for_what_reaches_no_output(
    size: str, fields: dict[str, Any], trainable: int
) -> None:
    with torch.device("meta"):
        report = apply_stage(LionForConditionalGeneration(LionConfig(**fields)), "mixture")
    assert report.trainable == trainable
    assert report.trainable + report.unused == reference_counts(size)


@EACH_STAGE
def test_the_report_counts_the_models_parameters(stage: Stage) -> None:
    model = tiny_model(**fields_of(stage))
    report = apply_stage(model, stage)
    assert report.stage is stage
    assert report.total == model.num_parameters()
    assert report.trainable == model.num_parameters(only_trainable=True)
    present = {part_of(name) for name, _ in model.named_parameters()}
    assert [part.name for part in report.parts] == [part for part in PARTS if part in present]


def test_the_report_prints_a_row_for_each_part_with_its_share() -> None:
    report = apply_stage(tiny_model(**fields_of(STAGES["image_level"])), 1)
    title, _, *rows, last, note = str(report).splitlines()
    assert title == "stage 1, image_level: image_level data"
    assert [row.split()[0] for row in rows] == [part.name for part in report.parts]
    assert rows[-1].split()[-1] == "0.00%"
    assert last.split() == [
        "all",
        f"{report.trainable:,}",
        f"{report.total:,}",
        f"{report.trainable / report.total:.2%}",
    ]
    assert note.startswith(f"{report.unused:,} parameters")
