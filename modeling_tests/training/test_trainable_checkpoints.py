"""Checkpoints of the trained part alone: they hold it all, and go onto their own base only."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from factories import tiny_inputs, tiny_labels, tiny_model
from transformers_lion import LionForConditionalGeneration
from transformers_lion.training import STAGES, apply_stage, load_trainable, save_trainable

TENSORS = "trainable.safetensors"
INDEX = "trainable.json"


def trained_model(stage: str, **fields: Any) -> LionForConditionalGeneration:
    """A model after a step of a stage."""
    fields.setdefault("visual_branch", STAGES[stage].visual_branch)
    fields["text_config"] = {"num_adapters": STAGES[stage].num_adapters, **fields.get("text_config", {})}
    model = tiny_model(**fields)
    apply_stage(model, stage)
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    model(**tiny_inputs(), labels=tiny_labels()).loss.backward()
    optimizer.step()
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture's checkpoint."""
    path = tmp_path_factory.mktemp("trained") / "checkpoint"
    save_trainable(trained_model("mixture"), path, "mixture")
    return path


def changed(folder: Path, target: Path, change: Callable[[dict, dict], None]) -> Path:
    """A copy of the checkpoint in which tensors and index went through `change`."""
    tensors, index = load_file(folder / TENSORS), json.loads((folder / INDEX).read_text())
    change(tensors, index)
    save_file(tensors, target / TENSORS)
    (target / INDEX).write_text(json.dumps(index))
    return target


@pytest.mark.parametrize("stage", STAGES)
def test_a_trained_part_on_its_base_is_the_trained_model(stage: str, tmp_path: Path) -> None:
    model = trained_model(stage)
    save_trainable(model, tmp_path)
    base = tiny_model(
        visual_branch=STAGES[stage].visual_branch, text_config={"num_adapters": STAGES[stage].num_adapters}
    )
    expected = model.state_dict()
    assert not all(torch.equal(tensor, expected[name]) for name, tensor in base.state_dict().items())
    load_trainable(base, tmp_path)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in base.state_dict().items())


def test_the_checkpoint_holds_what_requires_a_gradient_and_nothing_else(tmp_path: Path) -> None:
    model = tiny_model()
    report = apply_stage(model, 3)
    save_trainable(model, tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    assert tensors.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum(tensor.numel() for tensor in tensors.values()) == report.trainable
    assert (tmp_path / TENSORS).stat().st_size < 4 * report.trainable + 150 * len(tensors)


def test_a_stage_selects_its_parts_whatever_requires_a_gradient(folder: Path, tmp_path: Path) -> None:
    save_trainable(trained_model("mixture").requires_grad_(True), tmp_path, "mixture")
    assert (tmp_path / INDEX).read_text() == (folder / INDEX).read_text()
    assert (tmp_path / TENSORS).read_bytes() == (folder / TENSORS).read_bytes()


@pytest.mark.parametrize(("stage", "name"), [(3, "mixture"), (None, None)])
def test_loading_says_the_stage_that_was_noted_down(stage: int | None, name: str | None, tmp_path: Path) -> None:
    save_trainable(trained_model("mixture"), tmp_path, stage)
    assert load_trainable(tiny_model(), tmp_path) == name


def test_a_model_of_which_everything_trains_is_saved_and_loaded_too(tmp_path: Path) -> None:
    model = tiny_model(seed=3)
    save_trainable(model, tmp_path)
    base = tiny_model()
    load_trainable(base, tmp_path)
    inputs = {**tiny_inputs(), "labels": tiny_labels()}
    assert torch.equal(base(**inputs).logits, model(**inputs).logits)


def test_a_model_of_which_nothing_trains_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No parameter of the model requires a gradient"):
        save_trainable(tiny_model().requires_grad_(False), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_base_is_known_again_in_another_dtype(dtype: torch.dtype, folder: Path) -> None:
    base = tiny_model().to(dtype)
    load_trainable(base, folder)
    expected = load_file(folder / TENSORS)
    assert all(torch.equal(base.get_parameter(name), tensor.to(dtype)) for name, tensor in expected.items())


# --- strictness ---------------------------------------------------------------------------------------------------


def refusal(model: LionForConditionalGeneration, folder: Path) -> str:
    """What `load_trainable` refuses with; the model must be as before."""
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError) as info:  # noqa: PT011
        load_trainable(model, folder)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    return str(info.value)


def test_a_missing_tensor_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    count = len(load_file(folder / TENSORS))
    changed(folder, tmp_path, lambda tensors, index: tensors.pop("qformer.embeddings.layernorm.bias"))
    message = refusal(tiny_model(), tmp_path)
    assert "trainable.json has qformer.embeddings.layernorm.bias" in message
    assert f"lists {count} tensors, trainable.safetensors has {count - 1}" in message


def test_an_unknown_tensor_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    changed(folder, tmp_path, lambda tensors, index: tensors.update({"qformer.new": torch.zeros(1)}))
    assert "Only trainable.safetensors has qformer.new" in refusal(tiny_model(), tmp_path)


def test_a_model_with_other_parts_is_refused_with_both_counts(folder: Path) -> None:
    model = tiny_model(visual_branch="qformer")
    message = refusal(model, folder)
    assert "Only the checkpoint has aggregator." in message
    assert f"the model has {len(list(model.parameters())) - 6}" in message


def test_a_part_that_only_the_model_has_is_refused(folder: Path, tmp_path: Path) -> None:
    save_trainable(trained_model("region_level"), tmp_path)
    assert "Only the model has" in refusal(tiny_model(), tmp_path)


def test_another_shape_is_refused_with_both(folder: Path) -> None:
    model = tiny_model(text_config={"adapter_hidden_size": 8})
    message = refusal(model, folder)
    assert "adapters.0.down_proj.bias is (6,) in the checkpoint, but (8,) in the model" in message


def test_another_shape_of_the_base_is_refused_with_both(folder: Path) -> None:
    model = tiny_model()
    model.resize_token_embeddings(120)
    message = refusal(model, folder)
    assert "language_model.shared.weight is (99, 32) in the checkpoint, but (120, 32) in the model" in message


def test_another_base_of_the_same_shapes_is_refused_with_both_numbers(folder: Path) -> None:
    model = tiny_model()
    weight = model.vision_model.encoder.layers[2].mlp.fc2.weight
    saved = weight.flatten()[weight.numel() // 2].item()
    with torch.no_grad():
        weight.mul_(1.1)
    message = refusal(model, folder)
    assert "vision_model.encoder.layers.2.mlp.fc2.weight" in message
    assert f"{1.1 * saved:.6g}" in message
    assert f"{saved:.6g}" in message


def test_a_trained_part_that_is_quantized_in_the_model_is_refused(folder: Path) -> None:
    model = tiny_model()
    weight = model.language_projection.weight
    model.language_projection.weight = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
    assert "language_projection.weight is quantized in the model" in refusal(model, folder)


def test_a_quantized_base_is_taken_on_trust(folder: Path) -> None:
    model = tiny_model()
    weight = model.vision_model.encoder.layers[2].mlp.fc2.weight
    model.vision_model.encoder.layers[2].mlp.fc2.weight = torch.nn.Parameter(
        weight.to(torch.int8).flatten(), requires_grad=False
    )
    assert load_trainable(model, folder) == "mixture"
