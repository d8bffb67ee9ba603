"""A model is saved under plain names, whatever was compiled, and over an older one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from factories import tiny_model
from ram.factories import tiny_ram
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
