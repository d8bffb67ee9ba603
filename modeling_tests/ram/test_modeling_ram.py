"""RamForImageTagging: equal to the reference from the bottom to the top, and a good citizen of transformers.

The goldens come from the reference's own classes at a small size; see `recipe.py`.
"""

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from ram.factories import NAMES, tiny_pixels, tiny_ram
from transformers_lion.compatibility import enable_activation_checkpointing
from transformers_lion.ram import RamConfig, RamForImageTagging

TOLERANCE = 1e-5
Golden = dict[str, torch.Tensor]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_tokens_embeddings_and_logits_are_the_references(
    attention: str, ram_model: RamForImageTagging, ram_golden: Golden
) -> None:
    model = copy.deepcopy(ram_model)
    model.set_attn_implementation(attention)
    with torch.no_grad():
        features = model.get_image_features(ram_golden["pixel_values"])
        outputs = model(ram_golden["pixel_values"])
    for name, ours in {
        "vision": features.last_hidden_state,
        "image_embeds": outputs.image_embeds,
        "tagging_hidden": outputs.last_hidden_state,
        "logits": outputs.logits,
    }.items():
        torch.testing.assert_close(ours, ram_golden[name], rtol=0, atol=TOLERANCE)


def test_the_tags_are_the_references(ram_model: RamForImageTagging, ram_golden: Golden, ram_case: Any) -> None:
    with torch.no_grad():
        tags = ram_model.post_process_tagging(ram_model(ram_golden["pixel_values"]))
    assert [" | ".join(tag["label"] for tag in image) for image in tags] == ram_case["tags"]
    assert [", ".join(tag["label"] for tag in image) for image in tags] == ram_case["upstream_strings"]


def split_heads_otherwise(model: RamForImageTagging) -> None:
    for layer in model.head.layers:
        attention = layer.crossattention.attention
        attention.num_attention_heads, attention.attention_head_size = 2, 24
        attention.scaling = 24**-0.5


def swap_the_heads_layers(model: RamForImageTagging) -> None:
    model.head.layers = torch.nn.ModuleList(reversed(model.head.layers))


def skip_the_relu(model: RamForImageTagging) -> None:
    queries = model.label_projection(model.label_embeddings.weight[None])
    model.get_label_queries = lambda device: queries  # type: ignore[method-assign]


def swap_query_and_value_of_swin(model: RamForImageTagging) -> None:
    for stage in model.vision_model.encoder.layers:
        for block in stage.blocks:
            attention = block.attention
            attention.q_proj, attention.v_proj = attention.v_proj, attention.q_proj


def forget_the_windows_shift(model: RamForImageTagging) -> None:
    for stage in model.vision_model.encoder.layers:
        for block in stage.blocks:
            block.shift_size = 0


def flip_the_bias_tables(model: RamForImageTagging) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            parameter.data = parameter.data.flip(0)


@pytest.mark.parametrize(
    "damage",
    [
        split_heads_otherwise,
        swap_the_heads_layers,
        skip_the_relu,
        swap_query_and_value_of_swin,
        forget_the_windows_shift,
        flip_the_bias_tables,
    ],
)
def test_a_wrong_model_is_told_from_the_reference(
    damage: Callable[[RamForImageTagging], None], ram_model: RamForImageTagging, ram_golden: Golden
) -> None:
    model = copy.deepcopy(ram_model)
    damage(model)
    with torch.no_grad():
        logits = model(ram_golden["pixel_values"]).logits
    assert (logits - ram_golden["logits"]).abs().max() > 1e-2


def test_thresholds_of_the_neighbours_give_other_tags(
    ram_model: RamForImageTagging, ram_golden: Golden, ram_case: Any
) -> None:
    model = copy.deepcopy(ram_model)
    model.config.thresholds = model.config.thresholds[1:] + model.config.thresholds[:1]
    tags = model.post_process_tagging({"logits": ram_golden["logits"]})
    assert [" | ".join(tag["label"] for tag in image) for image in tags] != ram_case["tags"]


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    model, pixels = tiny_ram(), tiny_pixels(3)
    with torch.no_grad():
        together = model(pixels).logits
        alone = torch.cat([model(row[None]).logits for row in pixels])
    torch.testing.assert_close(together, alone)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_pixels_of_another_size_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"64x32.*32x32"):
        tiny_ram()(torch.zeros(1, 3, 64, 32))


def test_an_adapter_on_the_labels_projection_is_seen_when_it_is_on_and_when_it_is_off() -> None:
    peft = pytest.importorskip("peft")
    model, pixels = tiny_ram(), tiny_pixels()
    before = model(pixels).logits
    lora = peft.LoraConfig(target_modules=["label_projection", "query"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, lora).eval()
    after = adapted(pixels).logits
    assert (after - before).abs().max() > 1e-4
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(pixels).logits, before)
    torch.testing.assert_close(adapted(pixels).logits, after)


def test_threads_on_two_models_and_one_get_their_own_results() -> None:
    models = [tiny_ram(seed) for seed in (0, 1)]
    models.append(models[0])
    expected = [model(tiny_pixels()).logits.detach() for model in models]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(10):
            if not torch.allclose(models[index](tiny_pixels()).logits, expected[index], atol=1e-5):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_hidden_states_and_attentions_come_on_request() -> None:
    model = tiny_ram()
    model.set_attn_implementation("eager")
    outputs = model(tiny_pixels(2), output_hidden_states=True, output_attentions=True)
    assert [states.shape for states in outputs.hidden_states] == [(2, 5, 16)] * 2
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    assert [attention.shape for attention in outputs.cross_attentions] == [(2, 4, 5, 17)] * 2
    assert len(outputs.vision_hidden_states) == 3
    assert model(tiny_pixels(2)).hidden_states is None


def test_a_model_survives_saving(tmp_path: Path) -> None:
    model, pixels = tiny_ram(thresholds=[0.1, 0.2, 0.3, 0.4, 0.5]), tiny_pixels()
    model.save_pretrained(tmp_path)
    loaded = RamForImageTagging.from_pretrained(tmp_path)
    assert not loaded.training
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels).logits, model(pixels).logits)
    assert loaded.config.thresholds == model.config.thresholds


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageClassification])
def test_the_auto_classes_load_a_folder(auto_class: Any, tmp_path: Path) -> None:
    tiny_ram().save_pretrained(tmp_path)
    assert type(auto_class.from_pretrained(tmp_path)) is RamForImageTagging
    assert type(AutoConfig.from_pretrained(tmp_path)) is RamConfig


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_about_the_same_scores(dtype: torch.dtype, tmp_path: Path) -> None:
    model, pixels = tiny_ram(), tiny_pixels()
    model.save_pretrained(tmp_path)
    half = RamForImageTagging.from_pretrained(tmp_path, dtype=dtype)
    with torch.no_grad():
        logits = half(pixels).logits
        assert logits.dtype == dtype
        assert (logits.float().sigmoid() - model(pixels).logits.sigmoid()).abs().max() < 0.05


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_a_device_map_changes_nothing(device_map: Any, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model, pixels = tiny_ram(), tiny_pixels()
    model.save_pretrained(tmp_path)
    placed = RamForImageTagging.from_pretrained(tmp_path, device_map=device_map)
    with torch.no_grad():
        torch.testing.assert_close(placed(pixels).logits, model(pixels).logits)


def test_weights_on_disk_change_nothing(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model, pixels = tiny_ram(), tiny_pixels()
    model.save_pretrained(tmp_path / "model")
    device_map = dict.fromkeys(("vision_model", "label_embeddings", "label_projection", "head", "classifier"), "disk")
    device_map["vision_projection"] = "cpu"
    placed = RamForImageTagging.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    with torch.no_grad():
        torch.testing.assert_close(placed(pixels).logits, model(pixels).logits)


@pytest.mark.slow
@pytest.mark.skipif(Version(torch.__version__) < Version("2.8"), reason="torch 2.7 does not compile transformers' Swin")
def test_the_whole_model_compiles_in_one_graph() -> None:
    model, pixels = tiny_ram(), tiny_pixels()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixels).logits, model(pixels).logits)


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    model, pixels = tiny_ram(vision_config={"drop_path_rate": 0.0}), tiny_pixels()
    model.config.hidden_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    labels = torch.tensor([[1.0, 0, 0, 1, 0]] * 3)

    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        twin = copy.deepcopy(model).train()
        if checkpointing:
            enable_activation_checkpointing(twin)
        twin(pixels, labels=labels).loss.backward()
        return {name: parameter.grad for name, parameter in twin.named_parameters()}

    plain, checkpointed = gradients(False), gradients(True)
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


def test_a_head_as_wide_as_the_label_space_has_no_projection() -> None:
    model = tiny_ram(hidden_size=12)
    assert not [name for name in model.state_dict() if "label_projection" in name]
    assert model(tiny_pixels()).logits.shape == (3, 5)


def test_added_tags_leave_the_others_as_they_were_and_survive_saving(tmp_path: Path) -> None:
    model, pixels = tiny_ram(thresholds=[0.1, 0.2, 0.3, 0.4, 0.5]), tiny_pixels()
    embeds = torch.randn(2, 12)
    with torch.no_grad():
        before = model(pixels).logits
        model.add_tags(["striped", "tiny"], embeds, thresholds=[0.7, 0.8])
        after = model(pixels).logits
        torch.testing.assert_close(after[:, :5], before)
        model.save_pretrained(tmp_path)
        loaded = RamForImageTagging.from_pretrained(tmp_path)
        torch.testing.assert_close(loaded(pixels).logits, after)
    assert list(loaded.config.id2label.values()) == [*NAMES, "striped", "tiny"]
    assert loaded.config.thresholds == [0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.8]
    assert torch.equal(loaded.label_embeddings.weight[5:], embeds)


def test_a_tag_added_with_the_embedding_of_another_scores_as_that_one() -> None:
    model, pixels = tiny_ram(), tiny_pixels()
    model.add_tags("scarlet", model.label_embeddings.weight[:1].detach())
    with torch.no_grad():
        logits = model(pixels).logits
    torch.testing.assert_close(logits[:, 5], logits[:, 0])
    assert model.config.thresholds[5] == model.config.default_threshold


@pytest.mark.parametrize(
    ("names", "shape", "thresholds", "message"),
    [
        (["a", "b"], (1, 12), None, r"\(1, 12\).*\(2, 12\)"),
        (["a"], (1, 7), None, r"\(1, 7\).*\(1, 12\)"),
        (["red"], (1, 12), None, "'red' with ids 0 and 5"),
        (["a"], (1, 12), [0.5, 0.5], "6 tags but 7 thresholds"),
        (["a"], (1, 12), 2.0, "2.0"),
    ],
)
def test_wrong_new_tags_are_refused_and_change_nothing(
    names: list[str], shape: tuple[int, int], thresholds: Any, message: str
) -> None:
    model = tiny_ram()
    with pytest.raises(ValueError, match=message):
        model.add_tags(names, torch.zeros(shape), thresholds)
    assert model.config.num_labels == model.label_embeddings.num_embeddings == len(model.config.thresholds) == 5
