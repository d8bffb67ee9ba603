"""Models for `lion`: what is wrong with a folder is one line, before anything is loaded; `lion info`."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli.command_line import lion, refusal
from factories import tiny_model
from transformers_lion import ImageTagger, Lion, LionForConditionalGeneration
from transformers_lion.checkpoint_utils import read_headers
from transformers_lion.cli.checkpoints import load_lion, load_tagger
from transformers_lion.example import example_checkpoint, example_image


@pytest.fixture
def folder(lion_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the small LION that may be broken, in the working folder beside an image."""
    monkeypatch.chdir(tmp_path)
    example_image().resize((20, 20)).save("a.png")
    return Path(shutil.copytree(lion_folder, "lion"))


def edit(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


def shorten(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def drop(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["soft_prompt.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change(folder: Path, name: str, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[-1] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_part(folder: Path, **keys: Any) -> None:
    part = json.loads((folder / "config.json").read_text())["text_config"]
    edit(folder / "config.json", text_config={**part, **keys})


def move(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (lambda folder: shutil.rmtree(folder), "couldn't connect|cannot be loaded|No such file"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "lion: this folder has no config.json"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "lion/config.json: this is not JSON"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json: expected an object, not list"),
    "another model": (lambda folder: edit(folder / "config.json", model_type="bert"), "a model of type 'bert', not 'l"),
    "a wrong value": (lambda folder: edit(folder / "config.json", num_query_tokens="x"), "invalid configuration"),
    "no processor": (lambda folder: (folder / "processor_config.json").unlink(), "processor_config.json: No such file"),
    "a broken processor": (lambda folder: (folder / "processor_config.json").write_text("[]"), "expected an object"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "lion/model.safetensors: No such file"),
    "half of the weights": (shorten, "model.safetensors: damaged or incomplete safetensors file: .*not fully covered"),
    "garbage": (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "incomplete safetensors file"),
    "empty weights": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "incomplete safetensors file"),
    "a missing tensor": (drop, "the weights do not match config.json: soft_prompt.weight is missing"),
    "another size": (lambda folder: edit(folder / "config.json", num_query_tokens=9), r"has shape \(.*\), not \(9, "),
    "a missing shard": (move, "lion/model-1.safetensors: No such file"),
    "no tokenizer": (
        lambda folder: [file.unlink() for file in folder.glob("*token*") if file.is_file()],
        "lion/tokenizer_config.json: No such file",
    ),
    "no words for the Q-Former": (
        lambda folder: (folder / "qformer_tokenizer" / "tokenizer.json").unlink(),
        "lion/qformer_tokenizer/tokenizer.json: No such file",
    ),
    "another tokenizer for the Q-Former": (
        lambda folder: shutil.copy(folder / "tokenizer.json", folder / "qformer_tokenizer"),
        "but the Q-Former needs BERT's WordPiece",
    ),
    "no settings of generation": (
        lambda folder: (folder / "generation_config.json").unlink(),
        "lion/generation_config.json: No such file",
    ),
    "a negative width": (lambda folder: edit_part(folder, d_model=-4), "config.json: .*d_model is -4, but must be"),
    "a million layers": (lambda folder: edit_part(folder, num_layers=10**6), "num_layers is 1000000, but must be"),
    "a weight that is no number": (
        lambda folder: change(folder, "soft_prompt.weight", float("nan")),
        "lion cannot be loaded: .*soft_prompt.weight contains infinite values or NaN",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("harm", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_folder_that_cannot_be_loaded_is_one_line(harm: Any, words: str, folder: Path) -> None:
    harm(folder)
    line = refusal("caption", "a.png", "--model", "lion", "--tag-source", "none")
    assert re.search(words, line), line


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("./lost", "lost: No such file"),
        ("lost/in/depth", "lost/in/depth: No such"),
        ("a.png", "a.png: Not a directory"),
    ],
)
def test_a_path_that_is_no_folder_is_no_name_of_a_repository(model: str, words: str, folder: Path) -> None:
    assert words in refusal("caption", "a.png", "--model", model)


@pytest.mark.parametrize("device", ["quantum", "cuda:99", "cpu:x"])
def test_a_device_that_does_not_work_is_one_line(device: str, folder: Path) -> None:
    assert refusal("caption", "a.png", "--model", "lion", "--device", device).startswith(f"--device {device}: ")


def test_a_model_is_loaded_as_asked(folder: Path) -> None:
    lion_object = load_lion("lion", False, "cpu", "bfloat16")
    assert isinstance(lion_object, Lion)
    assert (lion_object.model.dtype, lion_object.tagger) == (torch.bfloat16, None)
    tagged = load_lion("lion", f"{example_checkpoint()}/tagger", "cpu", None)
    assert isinstance(tagged.tagger, ImageTagger)


def test_who_asks_a_model_without_a_tagger_is_told_so(folder: Path) -> None:
    ran = lion("caption", "a.png", "--model", "lion", "--max-new-tokens", 2)
    assert ran.code == 0
    assert ran.errors == ["note: lion has no tagger, so prompts have no tag sentence; see --tags and --tagger."]
    words = "lion has no tagger for --tag-source tagger; specify one with --tagger."
    assert refusal("caption", "a.png", "--model", "lion", "--tag-source", "tagger") == words
    assert lion("caption", "a.png", "--model", "lion", "--tag-source", "none", "--max-new-tokens", 2).errors == []


def test_taggers_are_found_by_themselves_in_a_lion_and_in_the_example(folder: Path) -> None:
    with pytest.raises(ValueError, match="has no tagger"):
        load_tagger("lion", None)
    example = load_tagger(None, None)
    example.save_pretrained("lion/tagger")
    for place in ("lion", "lion/tagger"):
        assert isinstance(load_tagger(place, None), ImageTagger)
    edit(Path("lion/tagger/config.json"), model_type="bert")
    with pytest.raises(ValueError, match="a model of type 'bert', not 'ram'"):
        load_tagger("lion", None)


# --- lion info ----------------------------------------------------------------------------------------------------


def test_info_counts_what_the_model_has(folder: Path) -> None:
    model = LionForConditionalGeneration.from_pretrained(folder)
    facts = json.loads("\n".join(lion("info", folder, "--json").lines))
    total = sum(parameter.numel() for parameter in model.parameters())
    parts = facts["parameters"]
    assert parts["total"] == total
    assert sum(number for name, number in parts.items() if name not in ("total", "of which adapters")) == total
    assert parts["vision tower"] == sum(parameter.numel() for parameter in model.vision_model.parameters())
    assert [facts["memory"][name]["weights"] for name in ("float32", "bfloat16")] == [4 * total, 2 * total]
    assert facts["stored"] == {"F32": total}
    assert facts["tasks"] == ["region_level", "image_level"]
    assert facts["tagger"] is None
    text = "\n".join(lion("info", folder).lines)
    assert f"{total:,}" in text
    assert "estimated" in text


def test_info_reads_no_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "model.safetensors"
    header = int.from_bytes(file.read_bytes()[:8], "little") + 8
    with file.open("r+b") as stream:
        stream.seek(header)
        stream.write(b"\xff" * (file.stat().st_size - header))
    monkeypatch.setattr(LionForConditionalGeneration, "from_pretrained", lambda *arguments, **options: 1 / 0)
    assert lion("info", folder).code == 0


def test_info_of_shards_of_a_branch_and_of_half_precision(tmp_path: Path) -> None:
    model = tiny_model(visual_branch="qformer", text_config={"num_adapters": 1}).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "tiny", max_shard_size="20KB")
    assert len(list((tmp_path / "tiny").glob("*.safetensors"))) > 1
    facts = json.loads("\n".join(lion("info", tmp_path / "tiny", "--json").lines))
    assert "aggregator" not in facts["parameters"]
    assert facts["stored"] == {"BF16": facts["parameters"]["total"]}
    assert (facts["visual_branch"], facts["tasks"], facts["loads_as"]) == ("qformer", ["one for all"], "bfloat16")


def test_info_of_a_tagger_and_of_a_lion_that_holds_it(folder: Path) -> None:
    load_tagger(None, None).save_pretrained("lion/tagger")
    alone = json.loads("\n".join(lion("info", "lion/tagger", "--json").lines))
    assert alone["parameters"]["total"] == sum(
        torch.Size(t.shape).numel() for t in read_headers(Path("lion/tagger")).values()
    )
    inside = json.loads("\n".join(lion("info", "lion", "--json").lines))["tagger"]
    assert inside["num_tags"] == alone["num_tags"] > 10
    assert "from its own tagger" in "\n".join(lion("info", "lion").lines)
    assert "RAM, a tagger" in "\n".join(lion("info", "lion/tagger").lines)


def test_info_is_about_the_example_by_default() -> None:
    assert lion("info").lines[0].endswith("example_checkpoint: LION")


@pytest.mark.parametrize("name", ["half of the weights", "a missing tensor", "no JSON", "no weights", "another model"])
def test_info_of_a_broken_folder_is_one_line(name: str, folder: Path) -> None:
    harm, words = BROKEN[name]
    harm(folder)
    assert re.search(words, refusal("info", "lion"))
