"""A model is saved under plain names, whatever was compiled, and over an older one, and can be copied and pickled."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from factories import tiny_inputs, tiny_labels, tiny_model
from ram.factories import tiny_pixels, tiny_ram
from transformers_lion import LionForConditionalGeneration

PARTS = {"lion": ("vision_model", "language_model.decoder", "qformer"), "ram": ("vision_model",)}


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("is_given", [False, True])
def test_a_model_with_compiled_parts_is_saved_whole(kind: str, is_given: bool, tmp_path: Path) -> None:
    model: Any = tiny_model() if kind == "lion" else tiny_ram()
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    for part in PARTS[kind]:
        parent, _, name = part.rpartition(".")
        setattr(model.get_submodule(parent), name, torch.compile(model.get_submodule(part)))
    model.save_pretrained(tmp_path, **({"state_dict": model.state_dict()} if is_given else {}))
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    found = loaded.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# --- over an older model ---------------------------------------------------------------------------------------

WHOLE, SHARDS = "50GB", "100KB"


def saved(folder: Path, seed: int, max_shard_size: str, variant: str | None = None) -> LionForConditionalGeneration:
    model = tiny_model(seed)
    model.save_pretrained(folder, max_shard_size=max_shard_size, variant=variant)
    return model


@pytest.mark.parametrize("variant", [None, "fp32"])
@pytest.mark.parametrize("sizes", [(WHOLE, SHARDS), (SHARDS, WHOLE), (SHARDS, SHARDS), (WHOLE, WHOLE)])
def test_a_model_saved_over_an_older_one_is_what_loads(
    sizes: tuple[str, str], variant: str | None, tmp_path: Path
) -> None:
    saved(tmp_path / "twice", 0, sizes[0], variant)
    expected = saved(tmp_path / "twice", 1, sizes[1], variant)
    loaded = LionForConditionalGeneration.from_pretrained(tmp_path / "twice", variant=variant)
    assert all(torch.equal(x, y) for x, y in zip(loaded.parameters(), expected.parameters(), strict=True))
    saved(tmp_path / "once", 1, sizes[1], variant)
    assert {path.name for path in (tmp_path / "twice").iterdir()} == {x.name for x in (tmp_path / "once").iterdir()}


def test_weights_of_another_variant_stay(tmp_path: Path) -> None:
    older = saved(tmp_path, 0, WHOLE, "fp32")
    saved(tmp_path, 1, SHARDS)
    loaded = LionForConditionalGeneration.from_pretrained(tmp_path, variant="fp32")
    assert all(torch.equal(x, y) for x, y in zip(loaded.parameters(), older.parameters(), strict=True))


# --- copied and pickled ----------------------------------------------------------------------------------------

STATES = torch.linspace(-1, 1, 160).reshape(1, 5, 32)
CALLS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "lion": (tiny_model, {**tiny_inputs(), "labels": tiny_labels()}),
    "language model": (
        lambda: tiny_model().language_model,
        {"input_ids": torch.tensor([[5, 6, 1]]), "labels": torch.tensor([[7, 1]]), "task_type_ids": torch.tensor([1])},
    ),
    "aggregator": (
        lambda: tiny_model().aggregator,
        {"hidden_states": STATES, "encoder_hidden_states": (STATES.flip(1), STATES.sin())},
    ),
    "ram": (tiny_ram, {"pixel_values": tiny_pixels()}),
}


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("kind", CALLS)
def test_a_model_that_has_recorded_hidden_states_can_be_copied_and_records_them_again(
    kind: str, copied: Callable[[Any], Any]
) -> None:
    make, inputs = CALLS[kind]
    model = make()
    expected = [states(model, inputs) for _ in range(2)][1]
    assert expected
    for twin in (copied(model), copied(copied(model)), model):
        found = states(twin, inputs)
        assert len(found) == len(expected)
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def states(model: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """The hidden states of all parts, in the order in which the output has them."""
    outputs = model(**inputs, output_hidden_states=True)
    parts = [outputs, *(outputs.get(f"{name}_outputs") for name in ("vision", "qformer", "aggregator"))]
    recorded = [part[name] for part in parts if part for name in part if name.endswith("hidden_states")]
    return [layer for layers in recorded if isinstance(layers, tuple) for layer in layers]


def test_a_module_in_two_places_is_one_in_a_copy() -> None:
    model = tiny_model()
    model.set_input_embeddings(model.get_input_embeddings())
    states(model, {**tiny_inputs(), "labels": tiny_labels()})
    twin = pickle.loads(pickle.dumps(model)).language_model
    assert twin.encoder.embed_tokens is twin.decoder.embed_tokens is twin.shared
