"""A model is saved under plain names, whatever was compiled."""

from pathlib import Path
from typing import Any

import pytest
import torch

from factories import tiny_model
from ram.factories import tiny_ram

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
