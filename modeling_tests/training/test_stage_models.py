"""The models that stages begin with: where each tensor comes from, and that they compute what the stages learned."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from factories import tiny_config, tiny_inputs, tiny_labels, tiny_model
from transformers_lion import LionForConditionalGeneration, LionProcessor
from transformers_lion.modeling_lion_t5 import LionAdapterMixture
from transformers_lion.training import apply_stage, combine_stages, start_stage
from transformers_lion.training.stages import ADAPTERS

FIELDS: dict[int, dict[str, Any]] = {
    1: {"visual_branch": "qformer", "text_config": {"num_adapters": 1}},
    2: {"visual_branch": "aggregator", "text_config": {"num_adapters": 1}},
}
QFORMER_SIDE = ("query_tokens.", "qformer.", "vision_model.post_layernorm.", "language_projection.")
AGGREGATOR_SIDE = ("aggregator.", "aggregator_projection.")


def is_base(name: str) -> bool:
    """Whether no stage trains a parameter."""
    in_tower = name.startswith("vision_model.") and ".post_layernorm." not in name
    return in_tower or (name.startswith("language_model.") and ".adapter." not in name)


def stage_model(number: int) -> LionForConditionalGeneration:
    """A model that the first or second stage trained, on the same base as the other's."""
    model, base = tiny_model(seed=number, **FIELDS[number]), dict(tiny_model(seed=9).named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_base(name):
                parameter.copy_(base[name])
    return model


def learn(model: LionForConditionalGeneration, number: int) -> None:
    """One step of a stage."""
    apply_stage(model, number)
    model.train()(**tiny_inputs(), labels=tiny_labels()).loss.backward()
    torch.optim.AdamW(value for value in model.parameters() if value.requires_grad).step()
    model.zero_grad()


@pytest.fixture(scope="module")
def stage1() -> LionForConditionalGeneration:
    return stage_model(1)


@pytest.fixture(scope="module")
def stage2() -> LionForConditionalGeneration:
    return stage_model(2)


@pytest.fixture(scope="module")
def mixture(stage1: LionForConditionalGeneration, stage2: LionForConditionalGeneration) -> LionForConditionalGeneration:
    return combine_stages(stage1, stage2).model


# --- the third stage's model --------------------------------------------------------------------------------------


def test_every_tensor_of_the_mixture_is_the_one_of_its_origin(
    stage1: LionForConditionalGeneration, stage2: LionForConditionalGeneration
) -> None:
    result = combine_stages(stage1, stage2)
    first, second = dict(stage1.named_parameters()), dict(stage2.named_parameters())
    found = dict(result.model.named_parameters())
    assert found.keys() == result.origins.keys() == dict(tiny_model().named_parameters()).keys()
    for name, parameter in found.items():
        if is_base(name):
            expected, origin = first[name], "both"
        elif name.startswith((*QFORMER_SIDE, "soft_prompt.")):
            expected, origin = first[name], "image_level"
        elif name.startswith(AGGREGATOR_SIDE) or ".adapters.0." in name:
            expected, origin = second[name], "region_level"
        elif ".adapters.1." in name:
            expected, origin = first[name.replace(".adapters.1.", ".adapters.0.")], "image_level"
        else:
            row = 0 if ".router.0." in name else 1
            expected, origin = torch.zeros(2, 32), "initialized"
            expected[row] = 1
        assert torch.equal(parameter, expected), name
        assert result.origins[name] == origin, name


def test_the_mixtures_router_starts_as_a_new_ones(mixture: LionForConditionalGeneration) -> None:
    fresh = LionForConditionalGeneration(tiny_config()).language_model.encoder.block[0].feed_forward.adapter.router
    for module in mixture.modules():
        if isinstance(module, LionAdapterMixture):
            assert all(torch.equal(gate.weight, new.weight) for gate, new in zip(module.router, fresh, strict=True))


@pytest.mark.parametrize(("task", "stage"), [(0, 2), (1, 1)], ids=["region_level", "image_level"])
def test_each_task_of_the_mixture_is_computed_as_by_the_stage_that_learned_it(
    task: int,
    stage: int,
    mixture: LionForConditionalGeneration,
    stage1: LionForConditionalGeneration,
    stage2: LionForConditionalGeneration,
) -> None:
    inputs = {"inputs_embeds": torch.randn(2, 6, 32), "decoder_input_ids": torch.randint(3, 90, (2, 4))}
    expected = {1: stage1, 2: stage2}[stage].language_model(**inputs).logits
    others = {1: stage2, 2: stage1}[stage].language_model(**inputs).logits
    found = mixture.language_model(**inputs, task_type_ids=torch.full((2,), task)).logits
    assert torch.equal(found, expected)
    assert not torch.equal(found, others)


def test_the_mixtures_image_features_are_those_of_both_stages(
    mixture: LionForConditionalGeneration, stage1: LionForConditionalGeneration, stage2: LionForConditionalGeneration
) -> None:
    inputs = tiny_inputs()
    decoder_input_ids = torch.zeros(4, 1, dtype=torch.long)
    found, first, second = (
        model(**inputs, decoder_input_ids=decoder_input_ids).image_hidden_states for model in (mixture, stage1, stage2)
    )
    assert torch.equal(found, torch.cat([first, second], dim=1))


@pytest.mark.parametrize("choice", ["image_level", "region_level", "mean"])
def test_the_soft_prompt_is_the_chosen_one(
    choice: str, stage1: LionForConditionalGeneration, stage2: LionForConditionalGeneration
) -> None:
    first, second = stage1.soft_prompt.weight, stage2.soft_prompt.weight
    expected = {"image_level": first, "region_level": second, "mean": (first + second) / 2}[choice]
    result = combine_stages(stage1, stage2, soft_prompt=choice)
    assert torch.equal(result.model.soft_prompt.weight, expected)
    assert result.origins["soft_prompt.weight"] == choice


def test_the_mixture_shares_no_memory_with_the_models_it_was_made_of(
    mixture: LionForConditionalGeneration, stage1: LionForConditionalGeneration, stage2: LionForConditionalGeneration
) -> None:
    taken = {parameter.data_ptr() for model in (stage1, stage2) for parameter in model.parameters()}
    assert not taken & {parameter.data_ptr() for parameter in mixture.parameters()}


def test_the_mixture_can_go_on_in_the_third_stage(mixture: LionForConditionalGeneration) -> None:
    assert apply_stage(copy.deepcopy(mixture), "mixture").trainable > 0


def test_folders_become_a_folder_with_processor_and_generation_settings(lion_folder: Path, tmp_path: Path) -> None:
    models = {number: stage_model(number) for number in (1, 2)}
    models[1].generation_config.num_beams = 7
    for number, model in models.items():
        model.save_pretrained(tmp_path / str(number))
    LionProcessor.from_pretrained(lion_folder).save_pretrained(tmp_path / "2")
    output = tmp_path / "3"
    built = combine_stages(tmp_path / "1", str(tmp_path / "2"), output)
    expected = combine_stages(models[1], models[2]).model.state_dict()
    loaded = LionForConditionalGeneration.from_pretrained(output)
    assert expected.keys() == loaded.state_dict().keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
        assert torch.equal(tensor, built.model.state_dict()[name]), name
    assert loaded.config.visual_branch == "both"
    assert loaded.config.text_config.num_adapters == 2
    assert loaded.generation_config.num_beams == 7
    assert (output / "processor_config.json").read_text() == (tmp_path / "2" / "processor_config.json").read_text()
    LionProcessor.from_pretrained(output)


def test_dtypes_that_differ_from_part_to_part_stay(tmp_path: Path) -> None:
    models = [stage_model(1).bfloat16(), stage_model(2).bfloat16()]
    for model in models:
        for name, parameter in model.named_parameters():
            if not is_base(name):
                parameter.data = parameter.data.float()
    for name, parameter in combine_stages(*models).model.named_parameters():
        assert parameter.dtype == (torch.bfloat16 if is_base(name) else torch.float32), name


@pytest.mark.parametrize("name", ["vision_model.encoder.layers.3.mlp.fc1.weight", "language_model.lm_head.weight"])
def test_stages_on_different_bases_are_refused_with_the_tensor_that_differs(
    name: str, stage1: LionForConditionalGeneration
) -> None:
    other = stage_model(2)
    with torch.no_grad():
        other.get_parameter(name).view(-1)[5] += 0.25
    with pytest.raises(ValueError, match=rf"{name} differs .* in 1 of {other.get_parameter(name).numel()} .* 0\.25"):
        combine_stages(stage1, other)


def test_stages_in_different_dtypes_are_refused_with_both(stage1: LionForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match=r"torch.float32 in stage 1, but torch.bfloat16 in stage 2"):
        combine_stages(stage1, stage_model(2).bfloat16())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text_config": {"num_adapters": 1, "adapter_hidden_size": 8}}, "text_config: adapter_hidden_size is 6 .* 8"),
        ({"vision_config": {"layer_norm_eps": 1e-3}}, "vision_config: layer_norm_eps is 1e-06 .* 0.001"),
        ({"soft_prompt_token_id": 7}, "soft_prompt_token_id is 98 .* 7"),
    ],
)
def test_stages_of_different_facts_are_refused_with_both(
    fields: dict[str, Any], words: str, stage1: LionForConditionalGeneration
) -> None:
    with pytest.raises(ValueError, match=words):
        combine_stages(stage1, tiny_model(**{**FIELDS[2], **fields}))


def test_stages_in_the_wrong_order_are_refused(
    stage1: LionForConditionalGeneration, stage2: LionForConditionalGeneration
) -> None:
    with pytest.raises(ValueError, match=r"Stage 1 \(image_level\) trains .*'qformer'.*'aggregator'"):
        combine_stages(stage2, stage1)


def test_an_unknown_soft_prompt_is_refused_with_the_known_ones(
    stage1: LionForConditionalGeneration, stage2: LionForConditionalGeneration
) -> None:
    with pytest.raises(ValueError, match=r"'sum', but must be one of .*'mean'"):
        combine_stages(stage1, stage2, soft_prompt="sum")


def test_the_output_may_not_replace_a_stage(stage2: LionForConditionalGeneration, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="folder of one of the stages"):
        combine_stages(tmp_path, stage2, output_dir=tmp_path / ".")


def test_the_stages_follow_one_another_from_a_base_to_the_last(tmp_path: Path) -> None:
    base = tiny_model()
    for number in (1, 2):
        model = start_stage(number, base).model
        learn(model, number)
        model.save_pretrained(tmp_path / str(number))
    combine_stages(tmp_path / "1", tmp_path / "2", tmp_path / "3")
    model = LionForConditionalGeneration.from_pretrained(tmp_path / "3")
    learn(model, 3)
    learn(model, 4)
    expected = dict(base.named_parameters())
    for name, parameter in model.named_parameters():
        assert not is_base(name) or torch.equal(parameter, expected[name]), name


# --- the first two stages' models ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "side"), [(1, QFORMER_SIDE), (2, AGGREGATOR_SIDE)])
def test_a_first_stage_takes_what_the_base_has_and_a_new_adapter(stage: int, side: tuple[str, ...]) -> None:
    base = tiny_model()
    result = start_stage(stage, base)
    expected = dict(base.named_parameters())
    for name, parameter in result.model.named_parameters():
        if ".adapter." in name:
            assert result.origins[name] == "initialized"
        else:
            assert is_base(name) or name.startswith((*side, "soft_prompt."))
            assert torch.equal(parameter, expected[name]), name
            assert result.origins[name] == "base", name
    assert result.origins.keys() == dict(tiny_model(**FIELDS[stage]).named_parameters()).keys()
    apply_stage(result.model, stage)


@pytest.mark.parametrize("branch", ["both", "qformer", "aggregator"])
@pytest.mark.parametrize("stage", [1, 2])
def test_new_parts_start_at_their_initial_values(stage: int, branch: str) -> None:
    base = tiny_model(visual_branch=branch)
    model = start_stage(stage, base, reuse=()).model
    adapter = model.language_model.decoder.block[1].feed_forward.adapter
    assert len(adapter.adapters) == 1
    assert len(adapter.router) == 0
    assert not adapter.adapters[0].up_proj.weight.any()
    assert not adapter.adapters[0].down_proj.bias.any()
    assert adapter.adapters[0].down_proj.weight.any()
    assert adapter.adapters[0].scale == 1
    assert 0.5 < model.soft_prompt.weight.std() < 1.5
    if stage == 1:
        assert torch.equal(model.vision_model.post_layernorm.weight, torch.ones(32))
        assert 0.1 < model.qformer.encoder.layer[1].attention.attention.query.weight.std() < 0.3
    else:
        assert not model.aggregator.layers[0].output.dense.weight.any()
        assert 0.01 < model.aggregator_projection.fc1.weight.std() < 0.03
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_only_the_parts_to_reuse_are_taken() -> None:
    base = tiny_model()
    result = start_stage("image_level", base, reuse=["qformer", "query_tokens"])
    for name, origin in result.origins.items():
        assert (origin == "base") == (is_base(name) or name.startswith(("qformer.", "query_tokens."))), name
    assert torch.equal(result.model.query_tokens.weight, base.query_tokens.weight)
    assert not torch.equal(result.model.soft_prompt.weight, base.soft_prompt.weight)


def test_training_the_new_model_leaves_the_base_alone() -> None:
    base = tiny_model()
    model = start_stage(1, base).model
    assert not {p.data_ptr() for p in base.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_a_base_can_be_a_folder_and_the_new_model_can_be_saved(tmp_path: Path) -> None:
    base = tiny_model()
    base.save_pretrained(tmp_path / "base")
    model = start_stage("region_level", tmp_path / "base", dtype="bfloat16").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    model.save_pretrained(tmp_path / "stage")
    loaded = LionForConditionalGeneration.from_pretrained(tmp_path / "stage").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("part", ["qformer", ADAPTERS, "heads"])
def test_a_part_that_cannot_be_reused_is_refused(part: str) -> None:
    with pytest.raises(ValueError, match=r"Stage 2 cannot reuse .* of this base, only \['aggregator', ") as info:
        start_stage(2, tiny_model(), reuse=[part])
    assert repr(part) in str(info.value)


@pytest.mark.parametrize("stage", [3, 4])
def test_a_later_stage_does_not_start_from_a_base(stage: int) -> None:
    with pytest.raises(ValueError, match=rf"Stage {stage} .* combine_stages"):
        start_stage(stage, tiny_model())


def test_origins_print_as_a_table() -> None:
    lines = str(start_stage(1, tiny_model(), reuse=["qformer"])).splitlines()
    assert lines[0].split() == ["part", "from", "parameters"]
    assert ["soft_prompt", "initialized", "32"] in [line.split() for line in lines]
    assert {line.split()[1] for line in lines[1:]} == {"base", "initialized"}


def test_no_report_of_missing_weights_is_logged_and_later_ones_are(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)  # it does not hand records on to the root
    try:
        start_stage(1, tiny_model())
        assert caplog.text == ""
        logger.warning("later")
        assert "later" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)
