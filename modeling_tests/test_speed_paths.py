"""Whatever inference does to be fast, its answers are those of the plain path."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import EncoderDecoderCache

from factories import tiny_inputs, tiny_model
from transformers_lion import LionForConditionalGeneration, adapter_folding, modeling_lion_t5, packed_linear
from transformers_lion.adapters import LionAdapterMixture
from transformers_lion.compatibility import cache_of
from transformers_lion.derived_weights import checksum, derived_forms
from transformers_lion.modeling_lion_t5 import LionT5ForConditionalGeneration
from transformers_lion.t5_attention import SharedCrossCache

OPTIONS: list[dict[str, Any]] = [
    {"num_beams": 1},
    {"num_beams": 5},
    {"num_beams": 5, "num_return_sequences": 3, "repetition_penalty": 1.5},
    {"num_beams": 3, "cache_implementation": "static"},
    {"num_beams": 3, "use_cache": False},
    {"num_beams": 3, "decoder_input_ids": torch.tensor([[0, 7, 8]] * 4)},
]
TASKS = {"mixed": [0, 1, 0, 1], "region level": [0] * 4, "image level": [1] * 4}


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Switches every fast path off."""

    def switch_off() -> None:
        for module in (modeling_lion_t5, adapter_folding, packed_linear):
            monkeypatch.setattr(module, "may_derive", lambda *_: False)
        monkeypatch.setattr(LionT5ForConditionalGeneration, "_shares_encoder", lambda *_: False)
        monkeypatch.setattr(modeling_lion_t5, "SharedCrossCache", EncoderDecoderCache)

    return switch_off


def mixture_of(model: LionForConditionalGeneration) -> LionAdapterMixture:
    return model.language_model.decoder.block[0].feed_forward.adapter


def has_forms(model: LionForConditionalGeneration) -> bool:
    return any(not form.is_empty for form in derived_forms(model))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("tasks", TASKS)
def test_fast_paths_generate_the_ids_of_the_plain_path(
    tasks: str, options: dict[str, Any], plain: Callable[[], None]
) -> None:
    model, inputs = tiny_model(), {**tiny_inputs(), "task_type_ids": torch.tensor(TASKS[tasks])}
    fast = model.generate(**inputs, max_new_tokens=8, **options)
    assert has_forms(model)
    plain()
    assert torch.equal(fast, model.generate(**inputs, max_new_tokens=8, **options))


@pytest.mark.parametrize("packs", [True, False])
def test_fast_logits_are_the_plain_ones_up_to_rounding(packs: bool, plain: Callable[[], None]) -> None:
    model, inputs = tiny_model(), {**tiny_inputs(2), "decoder_input_ids": torch.tensor([[0, 5, 9]] * 2)}
    model.language_model.pack_decoder(packs)
    with torch.no_grad():
        fast = model(**inputs).logits
        plain()
        assert torch.allclose(fast, model(**inputs).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("length", [1, 40])
def test_the_folded_mixture_is_the_plain_one_up_to_rounding(tasks: str, length: int) -> None:
    mixture, ids = mixture_of(tiny_model()), torch.tensor(TASKS[tasks])
    x = torch.randn(4, length, 32)
    with torch.no_grad():
        folded, expected = mixture(x, ids), mixture._plain_forward(x, ids)
    assert not mixture.folding.is_empty
    assert torch.allclose(folded, expected, atol=1e-5)


@pytest.mark.parametrize("write", ["in place", "through .data", "anew", "state dict", "cast"])
def test_changed_weights_are_seen_by_the_next_generation(write: str, plain: Callable[[], None]) -> None:
    model, inputs = tiny_model(), tiny_inputs()
    other = tiny_model(seed=1)
    model.generate(**inputs, max_new_tokens=6, num_beams=3)
    pairs = list(zip(model.language_model.parameters(), other.language_model.parameters(), strict=True))
    if write == "state dict":
        model.language_model.load_state_dict(other.language_model.state_dict())
    elif write == "cast":
        model.bfloat16().float()
    with torch.no_grad():
        for weight, new in pairs:
            if write == "in place":
                weight.copy_(new)
            elif write == "through .data":
                weight.data.copy_(new)
            elif write == "anew":
                weight.data = new.clone()
    fast = model.generate(**inputs, max_new_tokens=6, num_beams=3, output_scores=True, return_dict_in_generate=True)
    plain()
    slow = model.generate(**inputs, max_new_tokens=6, num_beams=3, output_scores=True, return_dict_in_generate=True)
    assert torch.equal(fast.sequences, slow.sequences)
    assert torch.allclose(fast.sequences_scores, slow.sequences_scores, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_checksum_reads_a_tensor_at_any_place_of_a_larger_one(dtype: torch.dtype) -> None:
    flat = torch.randn(12).to(dtype)
    for start in range(4):
        part = flat[start : start + 7]
        before = checksum(part)
        part[3] += 1
        assert checksum(part) != before


def test_a_model_in_one_flat_buffer_answers_as_before() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    expected = model.generate(**inputs, max_new_tokens=6, num_beams=3)
    weights = list(model.parameters())
    flat, offset = torch.empty(1 + sum(weight.numel() for weight in weights)), 1
    for weight in weights:
        part = flat[offset : offset + weight.numel()].view_as(weight)
        weight.data = part.copy_(weight.data)
        offset += weight.numel()
    for _ in range(2):
        assert torch.equal(model.generate(**inputs, max_new_tokens=6, num_beams=3), expected)


def test_training_drops_the_forms_and_gradients_never_use_them() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    model.generate(**inputs, max_new_tokens=3)
    assert has_forms(model)
    model.train()
    assert not has_forms(model)
    model.eval()(**inputs, labels=torch.tensor([[5, 1]] * 4)).loss.backward()
    assert not has_forms(model)
    assert all(adapter.scale.grad is not None for adapter in mixture_of(model).adapters)


def test_forms_are_neither_saved_nor_copied() -> None:
    model = tiny_model()
    names = set(model.state_dict())
    model.generate(**tiny_inputs(), max_new_tokens=3)
    assert set(model.state_dict()) == names
    assert not has_forms(copy.deepcopy(model))


def test_hooks_on_a_layer_are_called_on_the_fast_path_too() -> None:
    model, calls = tiny_model(), []
    decoder = model.language_model.decoder.block[0]
    for layer in (decoder.feed_forward.adapter.adapters[1].down_proj, decoder.layer[1].EncDecAttention.q):
        layer.register_forward_hook(lambda module, *_: calls.append(module))
    model.generate(**tiny_inputs(), max_new_tokens=3, min_new_tokens=3)
    assert len(calls) == 6


def test_keys_and_values_of_the_encoder_are_kept_once_for_all_beams() -> None:
    model = tiny_model()
    outputs = model.generate(**tiny_inputs(2), max_new_tokens=4, num_beams=5, return_dict_in_generate=True)
    cache = cache_of(outputs)
    assert isinstance(cache, SharedCrossCache)
    assert {len(layer.keys) for layer in cache.cross_attention_cache.layers} == {2}
    assert {len(layer.keys) for layer in cache.self_attention_cache.layers} == {10}


def test_attentions_of_shared_beams_are_those_of_repeated_ones(plain: Callable[[], None]) -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    options = {"num_beams": 3, "max_new_tokens": 4, "output_attentions": True, "return_dict_in_generate": True}
    fast = model.generate(**tiny_inputs(2), **options).cross_attentions
    plain()
    slow = model.generate(**tiny_inputs(2), **options).cross_attentions
    for step, expected in zip(fast, slow, strict=True):
        for layer, same in zip(step, expected, strict=True):
            assert torch.allclose(layer, same, atol=1e-5)


def test_logits_of_the_last_positions_alone_are_those_of_all() -> None:
    model, inputs = tiny_model(), {**tiny_inputs(2), "decoder_input_ids": torch.tensor([[0, 5, 9]] * 2)}
    with torch.no_grad():
        assert torch.allclose(model(**inputs, logits_to_keep=1).logits, model(**inputs).logits[:, -1:], atol=1e-5)


def test_images_in_chunks_have_the_features_of_one_batch() -> None:
    model, pixels = tiny_model(), tiny_inputs(5)["pixel_values"]
    with torch.no_grad():
        whole, parts = model.get_image_features(pixels), model.get_image_features(pixels, chunk_size=2)
    assert torch.allclose(whole.last_hidden_state, parts.last_hidden_state, atol=1e-5)
    assert torch.allclose(whole.pooler_output, parts.pooler_output, atol=1e-5)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        model.get_image_features(pixels, chunk_size=0)
