"""An optimized tagger tags as the plain one, and its tags are cached under the same names."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from ram.factories import noise_image, tiny_pixels, tiny_ram
from transformers_lion.cpu_inference import optimize_for_inference, ram_layers
from transformers_lion.cpu_inference.default import is_packed
from transformers_lion.cpu_inference.ram_layers import InferenceSwinLayer, InferenceTaggingHead
from transformers_lion.example import TAGGER, example_checkpoint
from transformers_lion.ram import ImageTagger, RamForImageTagging, RamImageProcessor
from transformers_lion.ram.tag_cache import digest_weights, weights_state


def shifted_ram() -> RamForImageTagging:
    """A model whose second layer has shifted windows."""
    return tiny_ram(vision_config={"depths": [2, 2]})


def image_tagger(model: RamForImageTagging, folder: Path) -> ImageTagger:
    return ImageTagger(model, RamImageProcessor(size={"height": 32, "width": 32}), tag_cache_dir=folder)


def replaced_parts(model: RamForImageTagging) -> set[type]:
    return {type(part) for part in model.modules()} & {InferenceSwinLayer, InferenceTaggingHead}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_those_of_float32_on_the_same_weights(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ram_layers, "BLOCK", 3)  # neither the tags nor the tokens are a multiple
    model = shifted_ram().to(dtype)
    plain = copy.deepcopy(model).float()
    optimize_for_inference(model)
    assert replaced_parts(model) == {InferenceSwinLayer, InferenceTaggingHead}
    with torch.no_grad():
        found, expected = model(tiny_pixels()), plain(tiny_pixels())
    assert torch.allclose(found.logits, expected.logits, atol=1e-5)
    assert torch.allclose(found.image_embeds, expected.image_embeds, atol=1e-5)


def test_recorded_states_are_those_of_the_plain_model() -> None:
    model = shifted_ram()
    with torch.no_grad():
        expected = model(tiny_pixels(), output_hidden_states=True, output_attentions=True)
        found = optimize_for_inference(model)(tiny_pixels(), output_hidden_states=True, output_attentions=True)
    for name in ("hidden_states", "vision_hidden_states"):
        pairs = zip(found[name], expected[name], strict=True)
        assert all(torch.allclose(state, other, atol=1e-5) for state, other in pairs)


def test_weights_are_read_without_restoring_the_model() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = shifted_ram().to(dtype)
        expected = {name: weight.clone() for name, weight in model.state_dict().items()}
        found = dict(optimize_for_inference(model).iterate_weights())
        assert replaced_parts(model)
        assert list(found) == list(expected)
        for name, weight in expected.items():
            assert found[name].dtype == weight.dtype
            assert torch.equal(found[name], weight), name
        assert digest_weights(model.iterate_weights()) == digest_weights(expected.items())


def test_tagging_keeps_the_model_optimized_and_finds_the_tags_of_the_plain_one(tmp_path: Path) -> None:
    plain = image_tagger(shifted_ram().to(torch.bfloat16).float(), tmp_path)
    expected = plain.tag(noise_image(), threshold=0.4)
    fast = image_tagger(optimize_for_inference(plain.model), tmp_path)
    assert is_packed(fast.model)
    monkey: list[Any] = []
    fast.model.register_forward_pre_hook(lambda *_: monkey.append(1))
    assert fast.tag(noise_image(), threshold=0.4) == expected
    assert not monkey  # the folder had the tags
    fast.tag(noise_image(1), threshold=0.4)
    assert len(monkey) == 1
    assert is_packed(fast.model)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_state_of_the_weights_changes_if_they_do() -> None:
    model = optimize_for_inference(shifted_ram())
    states = [weights_state(model)]
    assert weights_state(model) == states[0]
    with torch.no_grad():
        model.classifier.bias += 1
    states.append(weights_state(model))
    model.train().eval()
    states.append(weights_state(model))
    states.append(weights_state(optimize_for_inference(model)))
    assert all(state != other for index, state in enumerate(states) for other in states[:index])


def test_a_loaded_tagger_is_optimized_unless_refused() -> None:
    folder = Path(example_checkpoint()) / TAGGER
    assert replaced_parts(ImageTagger.from_pretrained(folder).model)
    assert not replaced_parts(ImageTagger.from_pretrained(folder, optimize=False).model)
    assert not replaced_parts(ImageTagger.from_pretrained(folder, dtype="bfloat16").model)


def test_adding_tags_restores_the_model() -> None:
    model = optimize_for_inference(shifted_ram().to(torch.bfloat16))
    model.add_tags(["purple"], torch.ones(1, 12))
    assert not replaced_parts(model)
    assert model.label_embeddings.weight.dtype == torch.bfloat16
    assert model.label_embeddings.num_embeddings == 6
    with torch.no_grad():
        assert optimize_for_inference(model)(tiny_pixels()).logits.shape == (3, 6)
