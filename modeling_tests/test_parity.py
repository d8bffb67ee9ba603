"""The converted model against what the reference computed, from the bottom to the top, and proof that this can fail.

The goldens come from the reference's own classes at a small size; see `recipe.py`.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import convert_lion
from recipe import GOLDENS
from transformers_lion import LionForConditionalGeneration

CASES = ("image", "region", "image_notags", "qformer", "aggregator")
TOLERANCE = 1e-5  # relative to the largest value of the tensor
POSITIONS = 10  # of the logits that are stored

Golden = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def models(lion_files: Path, lion_model: LionForConditionalGeneration, tmp_path_factory: Any) -> dict[str, Any]:
    """The model of each case: the one with both branches, or that of a stage with one."""
    folder = tmp_path_factory.mktemp("branches")
    one_branch = {
        name: LionForConditionalGeneration.from_pretrained(
            convert_lion(lion_files, folder / name, f"lion_{name}.pth")
        ).eval()
        for name in ("qformer", "aggregator")
    }
    return {name: one_branch.get(name, lion_model) for name in CASES}


def case_inputs(name: str, processor: Any, case: dict[str, Any], golden: Golden) -> dict[str, torch.Tensor]:
    settings = case["cases"][name]
    inputs = processor(
        text=case["questions"],
        tags=case["tags"] if settings["tags"] else None,
        task_type=settings["category"],
        return_tensors="pt",
    )
    return {**inputs, "pixel_values": golden["pixel_values"]}


def labels_of(processor: Any, case: dict[str, Any]) -> torch.Tensor:
    return processor(text=case["questions"], text_target=case["answers"], return_tensors="pt")["labels"]


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def test_the_vision_towers_taps_and_norm_are_the_references(lion_model: Any, golden: Golden) -> None:
    with torch.no_grad():
        features = lion_model.get_image_features(golden["pixel_values"], output_hidden_states=True)
    for block in (18, 28, 38):
        assert relative_difference(features.hidden_states[block + 1], golden[f"vision.block{block}"]) < TOLERANCE
    assert relative_difference(features.last_hidden_state, golden["ln_vision"]) < TOLERANCE


def test_the_aggregator_is_the_references(lion_model: Any, golden: Golden) -> None:
    with torch.no_grad():
        features = lion_model.get_image_features(golden["pixel_values"])
    assert relative_difference(features.aggregator_outputs.last_hidden_state, golden["aggregator"]) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_the_tokens_are_the_references(name: str, lion_processor: Any, case: Any, golden: Golden) -> None:
    inputs = case_inputs(name, lion_processor, case, golden)
    for key in ("input_ids", "attention_mask", "qformer_input_ids"):
        if f"{name}.{key}" in golden:
            assert torch.equal(inputs[key].int(), golden[f"{name}.{key}"])


@pytest.mark.parametrize("name", CASES)
def test_features_logits_and_loss_are_the_references(
    name: str, models: Any, lion_processor: Any, case: Any, golden: Golden
) -> None:
    with torch.no_grad():
        outputs = models[name](
            **case_inputs(name, lion_processor, case, golden), labels=labels_of(lion_processor, case)
        )
    assert relative_difference(outputs.image_hidden_states, golden[f"{name}.image_features"]) < TOLERANCE
    assert relative_difference(outputs.logits[:, :POSITIONS], golden[f"{name}.logits"]) < TOLERANCE
    assert outputs.loss.item() == pytest.approx(case["cases"][name]["loss"], rel=1e-6)
    if f"{name}.encoder_last_hidden_state" in golden:
        encoded = golden[f"{name}.encoder_last_hidden_state"]
        assert relative_difference(outputs.encoder_last_hidden_state, encoded) < TOLERANCE


@pytest.mark.parametrize("penalty", [1.0, 1.5])
@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize("name", CASES)
def test_generated_ids_are_the_references(
    name: str, beams: int, penalty: float, models: Any, lion_processor: Any, case: Any, golden: Golden
) -> None:
    ids = models[name].generate(
        **case_inputs(name, lion_processor, case, golden),
        num_beams=beams,
        repetition_penalty=penalty,
        max_new_tokens=24,
    )
    assert torch.equal(ids.int(), golden[f"{name}.generate.beams{beams}.rep{penalty}"])
    texts = lion_processor.batch_decode(ids, skip_special_tokens=True)
    assert texts == case["cases"][name]["texts"][f"beams{beams}.rep{penalty}"]


@pytest.mark.parametrize("penalty", [1.0, 1.5])
@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize("name", ["image", "region"])
def test_ids_of_answers_that_end_are_the_references_to_the_last_padding(
    name: str, beams: int, penalty: float, lion_model: Any, lion_processor: Any, case: Any, golden: Golden
) -> None:
    """The goldens' answers never end by themselves, so these come from a model that is keener on the end token."""
    ended = json.loads((GOLDENS / "lion" / "ended.json").read_text())
    model = copy.deepcopy(lion_model)
    model.language_model.lm_head.weight.data[1] *= ended["end_boost"]
    inputs = case_inputs(name, lion_processor, case, golden)
    ids = model.generate(**inputs, num_beams=beams, repetition_penalty=penalty, max_new_tokens=24)
    assert ids.tolist() == ended[name][f"beams{beams}.rep{penalty}"]
    outputs = model.generate(
        **inputs, num_beams=beams, repetition_penalty=penalty, max_new_tokens=24, return_dict_in_generate=True
    )
    assert torch.equal(outputs.sequences, ids)


def test_a_batch_that_mixes_tasks_takes_each_row_from_its_own_task(
    lion_model: Any, lion_processor: Any, case: Any, golden: Golden
) -> None:
    inputs = case_inputs("image", lion_processor, case, golden)
    inputs["task_type_ids"] = torch.tensor([0, 1, 0])
    with torch.no_grad():
        logits = lion_model(**inputs, labels=labels_of(lion_processor, case)).logits[:, :POSITIONS]
    for row, name in enumerate(("region", "image", "region")):
        assert relative_difference(logits[row], golden[f"{name}.logits"][row]) < TOLERANCE


def swap_taps(model: Any) -> None:
    model.config.aggregator_config.vision_feature_layers = [38, 18, 28]


def swap_router_rows(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if ".router." in name:
            parameter.data = parameter.data.flip(0)


def make_the_aggregator_causal(model: Any) -> None:
    for layer in model.aggregator.layers:
        attention = layer.attention.attention
        forward, size = attention.forward, model.config.vision_config.image_size // 14
        mask = torch.full((size**2 + 1,) * 2, torch.finfo(torch.float32).min).triu(1)[None, None]
        attention.forward = lambda *args, forward=forward, mask=mask, **kwargs: forward(
            *args, **{**kwargs, "attention_mask": mask}
        )


def take_the_approximate_gelu(model: Any) -> None:
    from transformers.activations import ACT2FN

    for block in (*model.language_model.encoder.block, *model.language_model.decoder.block):
        block.feed_forward.DenseReluDense.act = ACT2FN["gelu_new"]


def tie_lm_head(model: Any) -> None:
    model.language_model.lm_head.weight = model.language_model.shared.weight


def normalise_the_adapters_input(model: Any) -> None:
    for block in (*model.language_model.encoder.block, *model.language_model.decoder.block):
        norm = block.feed_forward.layer_norm
        block.feed_forward.adapter.register_forward_pre_hook(lambda _, args, norm=norm: (norm(args[0]), *args[1:]))


@pytest.mark.parametrize(
    ("damage", "moved"),
    [
        (swap_taps, 1e-2),
        (swap_router_rows, 1e-2),
        (make_the_aggregator_causal, 1e-2),
        (normalise_the_adapters_input, 1e-2),
        (tie_lm_head, 1e-2),
        (take_the_approximate_gelu, 10 * TOLERANCE),
    ],
)
def test_a_wrong_model_is_told_from_the_reference(
    damage: Any, moved: float, lion_model: Any, lion_processor: Any, case: Any, golden: Golden
) -> None:
    model = copy.deepcopy(lion_model)
    damage(model)
    with torch.no_grad():
        outputs = model(**case_inputs("image", lion_processor, case, golden), labels=labels_of(lion_processor, case))
    assert relative_difference(outputs.logits[:, :POSITIONS], golden["image.logits"]) > moved
