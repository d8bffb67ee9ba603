"""An optimized model answers as the plain one, and becomes it again."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

from factories import NO_DROPOUT, tiny_inputs, tiny_labels, tiny_model
from ram.factories import tiny_ram
from transformers_lion.cpu_inference import optimize_for_inference, restore_for_training
from transformers_lion.cpu_inference.decoder import InferenceDecoder
from transformers_lion.cpu_inference.linear import HalfEmbedding, PackedLinear
from transformers_lion.cpu_inference.packs import Float16Pack, Float32Pack

FORMS = [(torch.float32, Float32Pack), (torch.bfloat16, Float16Pack), (torch.float16, Float16Pack)]


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, weight in expected.items():
        assert found[name].dtype == weight.dtype, name
        assert torch.equal(found[name].view(torch.uint8), weight.view(torch.uint8)), name


def packed_layers(model: nn.Module) -> list[PackedLinear]:
    return [part for part in model.modules() if isinstance(part, PackedLinear)]


@pytest.mark.parametrize(("dtype", "pack"), FORMS, ids=str)
def test_answers_are_those_of_float32_on_the_same_weights(dtype: torch.dtype, pack: type) -> None:
    model = tiny_model(**NO_DROPOUT).to(dtype)
    plain, weights, inputs = copy.deepcopy(model).float(), weights_of(model), tiny_inputs()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert optimize_for_inference(model) is model
    parts = {type(layer.pack) for layer in packed_layers(model)}
    assert parts == {pack}
    assert isinstance(model.get_decoder(), InferenceDecoder)
    assert model.dtype == torch.float32
    with torch.no_grad():
        expected, found = (side(**inputs, labels=tiny_labels()) for side in (plain, model))
    assert (found.logits - expected.logits).norm() < 1e-5 * expected.logits.norm()
    for num_beams in (1, 4):
        options: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": 8}
        assert torch.equal(model.generate(**inputs, **options), plain.generate(**inputs, **options))
    assert_same(weights_of(restore_for_training(model)), weights)
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == trained
    assert not packed_layers(model)


def test_embeddings_stay_in_16_bits_and_are_shared() -> None:
    model = optimize_for_inference(tiny_model().to(torch.bfloat16))
    parts = [part for part in model.modules() if isinstance(part, HalfEmbedding)]
    assert {part.weight.dtype for part in parts} == {torch.bfloat16}
    language_model = model.language_model
    embeddings = [language_model.shared, language_model.encoder.embed_tokens, language_model.decoder.embed_tokens]
    assert len({part.weight.data_ptr() for part in embeddings}) == 1
    assert all(part(torch.tensor([[3]])).dtype == torch.float32 for part in embeddings)


def test_a_language_model_in_16_bits_answers_alone() -> None:
    model = tiny_model().language_model.to(torch.bfloat16)
    text = {"input_ids": torch.tensor([[5, 6, 1]]), "task_type_ids": torch.tensor([1])}
    expected = copy.deepcopy(model).float().generate(**text, max_new_tokens=6, num_beams=3)
    assert torch.equal(optimize_for_inference(model).generate(**text, max_new_tokens=6, num_beams=3), expected)


UNDOING: dict[str, Callable[[nn.Module], Any]] = {
    "training": lambda model: model.train(),
    "reading the weights": lambda model: model.state_dict(),
    "loading weights": lambda model: model.load_state_dict(tiny_model(1).to(torch.bfloat16).state_dict()),
    "a larger vocabulary": lambda model: model.resize_token_embeddings(104),
}


@pytest.mark.parametrize("what", UNDOING)
def test_it_is_undone_by(what: str) -> None:
    model = optimize_for_inference(tiny_model().to(torch.bfloat16))
    UNDOING[what](model)
    assert not packed_layers(model)
    assert not isinstance(model.get_decoder(), InferenceDecoder)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_a_saved_folder_is_that_of_the_plain_model(tmp_path: Path) -> None:
    plain = tiny_model().to(torch.bfloat16)
    plain.save_pretrained(tmp_path / "plain")
    optimize_for_inference(plain.eval()).save_pretrained(tmp_path / "optimized")
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "optimized" / name).read_text() == (tmp_path / "plain" / name).read_text()
    saved, expected = (load_file(tmp_path / folder / "model.safetensors") for folder in ("optimized", "plain"))
    assert_same(dict(sorted(saved.items())), dict(sorted(expected.items())))


def test_a_loaded_model_is_optimized_in_its_mapped_file(tmp_path: Path) -> None:
    plain = tiny_model().to(torch.bfloat16)
    plain.save_pretrained(tmp_path)
    model = type(plain).from_pretrained(tmp_path, dtype="auto")
    assert_same(weights_of(restore_for_training(optimize_for_inference(model))), weights_of(plain))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_is_optimized_and_independent(duplicate: Callable[[nn.Module], Any], dtype: torch.dtype) -> None:
    model, inputs = tiny_model().to(dtype), tiny_inputs()
    weights = weights_of(model)
    expected = optimize_for_inference(model).generate(**inputs, max_new_tokens=6)
    copied = duplicate(model)
    assert_same(weights_of(restore_for_training(model)), weights)
    assert isinstance(copied.get_decoder(), InferenceDecoder)
    assert torch.equal(copied.generate(**inputs, max_new_tokens=6), expected)
    assert_same(weights_of(copied), weights)


def test_the_tagger_and_the_language_model_alone_are_optimized_too() -> None:
    tagger = tiny_ram()
    pixels = torch.randn(2, 3, *tagger.config.image_size, generator=torch.Generator().manual_seed(0))
    language_model, weights = tiny_model().language_model, weights_of(tagger)
    text = {"input_ids": torch.tensor([[5, 6, 1]]), "task_type_ids": torch.tensor([1])}
    with torch.no_grad():
        expected, expected_ids = tagger(pixels).logits, language_model.generate(**text, max_new_tokens=6)
        found, found_ids = (
            optimize_for_inference(tagger)(pixels).logits,
            optimize_for_inference(language_model).generate(**text, max_new_tokens=6),
        )
    assert packed_layers(tagger)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(found_ids, expected_ids)
    assert_same(weights_of(tagger.train()), weights)


def test_layers_that_do_more_than_multiply_are_left_alone() -> None:
    model, inputs = tiny_model(**NO_DROPOUT), tiny_inputs(2)
    model.language_model.decoder.block[0].layer[0].SelfAttention.o.register_forward_hook(lambda *_: None)
    with_lora = get_peft_model(model, LoraConfig(target_modules=["q", "wo"], init_lora_weights=False)).eval()
    expected = with_lora.generate(**inputs, max_new_tokens=6)
    optimize_for_inference(model)
    names = [name for name, part in model.named_modules() if isinstance(part, PackedLinear)]
    assert any("vision_model" in name for name in names)
    assert not any(name.split(".")[-1] in ("q", "wo", "base_layer") for name in names)
    assert "language_model.encoder.block.0.layer.0.SelfAttention.o" in names
    assert "language_model.decoder.stack.block.0.layer.0.SelfAttention.o" not in names
    assert torch.equal(with_lora.generate(**inputs, max_new_tokens=6), expected)


def test_what_a_packed_model_cannot_do_is_an_error() -> None:
    model = optimize_for_inference(tiny_model())
    with pytest.raises(RuntimeError, match=r"cannot be moved to cpu in torch.bfloat16.*restore_for_training"):
        model.vision_model.to(torch.bfloat16)  # the whole model would be restored
    with pytest.raises(RuntimeError, match="no state dict"):
        model.vision_model.state_dict()
    with pytest.raises(RuntimeError, match="cannot be trained"):
        model.vision_model.train()
    model.language_model.lm_head = nn.Linear(32, 99)
    with pytest.raises(RuntimeError, match="lm_head was replaced by a Linear"):
        model.train()
