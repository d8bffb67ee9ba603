"""The conversion of RAM's files: every key accounted for, sizes from shapes, and errors in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from convert_ram_checkpoint import infer_fields
from infer_config import build_config, merge
from key_map import convert as apply
from key_map import revert
from ram.conftest import convert_ram
from ram.recipe import ram_manifest
from ram_bias_tables import resize_bias_table
from ram_keys import RAM_KEYS, droppable, kept_names
from recipe import GOLDENS, seeded_weights
from transformers_lion.ram import RamConfig, RamForImageTagging

Tensors = dict[str, torch.Tensor]
NUM_TAGGING_KEYS = 401


@pytest.fixture(scope="module")
def released_keys() -> dict[str, Any]:
    """Name -> [shape, dtype, ...] of the released file."""
    return json.loads((GOLDENS / "keys" / "ram_swin_large_14m.json").read_text())


@pytest.fixture
def tensors() -> Tensors:
    return seeded_weights(ram_manifest())


def write(folder: Path, tensors: Any) -> Path:
    torch.save(tensors, folder / "other.pth")
    return folder / "other.pth"


def test_each_key_of_the_released_file_has_its_place_at_full_size(released_keys: dict[str, Any]) -> None:
    tensors = {key: torch.empty(shape, device="meta") for key, (shape, *_) in released_keys.items()}
    kept = {name: tensors[key] for name, key in kept_names(tensors).items()}
    buffers = [key for key in tensors if droppable(key) and not key.startswith(("text_decoder.", "tag_encoder."))]
    assert len(kept) + len(buffers) == NUM_TAGGING_KEYS
    fields = infer_fields(kept)
    assert build_config(RamConfig, fields).to_dict() == RamConfig().to_dict()
    with torch.device("meta"):
        model = RamForImageTagging(build_config(RamConfig, fields))
    converted = dict(revert(RAM_KEYS.from_converted(kept), kept.__getitem__))
    assert {name: tensor.shape for name, tensor in converted.items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }


def test_the_key_map_runs_in_both_directions(tensors: Tensors, ram_model: RamForImageTagging) -> None:
    kept = {name: tensors[key] for name, key in kept_names(tensors).items()}
    converted = ram_model.state_dict()
    there = dict(revert(RAM_KEYS.from_converted(kept), kept.__getitem__))
    back = dict(apply(RAM_KEYS.from_originals(converted), converted.__getitem__))
    assert there.keys() == converted.keys()
    assert back.keys() == kept.keys()
    assert all(torch.equal(tensor, converted[name]) for name, tensor in there.items())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in back.items())


def test_the_folder_holds_names_thresholds_and_the_image_size(ram_folder: Path, ram_files: Path) -> None:
    config = RamConfig.from_pretrained(ram_folder)
    assert list(config.id2label.values()) == (ram_files / "tag_list.txt").read_text().splitlines()
    limits = (ram_files / "tag_list_threshold.txt").read_text().split()
    assert config.thresholds == [float(limit) for limit in limits]
    image_processor = AutoImageProcessor.from_pretrained(ram_folder)
    assert (image_processor.size.height, image_processor.size.width) == config.image_size == (96, 96)
    assert sorted(path.name for path in ram_folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


def under_the_other_prefix(tensors: Tensors) -> Any:
    return {"model": {name.replace("tagging_head.", "vision_multi."): tensor for name, tensor in tensors.items()}}


def bare(tensors: Tensors) -> Any:
    return tensors


def with_buffers(tensors: Tensors) -> Any:
    block = "visual_encoder.layers.0.blocks.1."
    buffers = {f"{block}attn_mask": torch.zeros(64, 9, 9), f"{block}attn.relative_position_index": torch.zeros(9, 9)}
    return {"model": {**tensors, **buffers}}


def without_text_parts(tensors: Tensors) -> Any:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(("text_decoder", "tag_encoder"))}


@pytest.mark.parametrize("layout", [under_the_other_prefix, bare, with_buffers, without_text_parts])
def test_other_layouts_of_the_file_convert_to_the_same(
    layout: Callable[[Tensors], Any], tensors: Tensors, ram_files: Path, ram_folder: Path, tmp_path: Path
) -> None:
    assert convert_ram(ram_files, tmp_path / "out", ram=write(tmp_path, layout(tensors))) == 0
    ours, usual = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", ram_folder))
    assert ours.keys() == usual.keys()
    assert all(torch.equal(tensor, usual[name]) for name, tensor in ours.items())


def test_a_half_precision_file_becomes_float32(tensors: Tensors, ram_files: Path, tmp_path: Path) -> None:
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    assert convert_ram(ram_files, tmp_path / "out", ram=write(tmp_path, halves)) == 0
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}


def test_an_override_of_the_window_resizes_the_bias_tables(ram_files: Path, tmp_path: Path) -> None:
    (tmp_path / "overrides.json").write_text(json.dumps({"vision_config": {"image_size": 192, "window_size": 6}}))
    assert convert_ram(ram_files, tmp_path / "out", overrides=tmp_path / "overrides.json") == 0
    model = RamForImageTagging.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 192, 192)).logits.shape == (1, 36)
    tables = [value for name, value in model.state_dict().items() if name.endswith("relative_position_bias_table")]
    assert {len(table) for table in tables} == {121}


def test_a_resized_bias_table_keeps_its_centre_and_its_border() -> None:
    table = torch.randn(25, 2)
    old, new = table.view(5, 5, 2), resize_bias_table(table, 6).view(11, 11, 2)
    torch.testing.assert_close(new[5, 5], old[2, 2])
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        torch.testing.assert_close(new[row, column], old[row, column], atol=1e-4, rtol=0)
    assert resize_bias_table(table, 3) is table


def test_resizing_reproduces_what_a_cubic_can_say() -> None:
    """Offsets of a smaller window lie within the old ones, where a spline through a cubic is the cubic."""
    old, new = torch.arange(-11.0, 12), torch.arange(-3.0, 4)
    spread = torch.cumsum(torch.tensor([1.01]) ** torch.arange(11), 0)
    nodes = torch.cat([-spread.flip(0), torch.zeros(1), spread])

    def cubic(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 0.01 * x[:, None] ** 3 - 0.2 * x[:, None] * y[None] + 0.03 * y[None] ** 3

    assert len(old) == len(nodes)
    resized = resize_bias_table(cubic(nodes, nodes).reshape(-1, 1).double(), 4)
    torch.testing.assert_close(resized.view(7, 7), cubic(new, new).double(), atol=1e-3, rtol=1e-3)


def without(name: str) -> Callable[[Tensors], Any]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def with_tensor(name: str, *shape: int) -> Callable[[Tensors], Any]:
    return lambda tensors: {**tensors, name: torch.zeros(shape)}


PROJECTION = "visual_encoder.layers.1.blocks.0.attn.proj.weight"
KEY = "encoder.layer.0.crossattention.self.key.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without(PROJECTION), [PROJECTION]),
        (without("visual_encoder.layers.1.blocks.0.attn.qkv.bias"), ["layers.1.blocks.0.attn.qkv.bias"]),
        (without("label_embed"), ["label_embed"]),
        (without("image_proj.weight"), ["image_proj.weight"]),
        (with_tensor("clip_proj.weight", 3), ["clip_proj.weight"]),
        (with_tensor("visual_encoder.absolute_pos_embed", 1, 576, 16), ["absolute_pos_embed"]),
        (with_tensor(f"vision_multi.{KEY}", 48, 512), [f"vision_multi.{KEY}", f"tagging_head.{KEY}"]),
        (with_tensor(PROJECTION, 32, 31), [PROJECTION, "(32, 31)", "(32, 32)"]),
        (with_tensor("label_embed", 35, 512), ["35 tags", "36 lines"]),
        (with_tensor("visual_encoder.layers.0.blocks.0.attn.relative_position_bias_table", 24, 1), ["24 rows"]),
        (with_tensor("label_embed", 36), ["label_embed", "(36,)", "2 dimensions"]),
        (lambda tensors: {**tensors, PROJECTION: tensors[PROJECTION].int()}, [PROJECTION, "int32"]),
        (lambda tensors: {**tensors, PROJECTION: tensors[PROJECTION] / 0}, [PROJECTION, "1024 NaN or infinite"]),
        (lambda tensors: [1, 2], ["list"]),
        (lambda tensors: {"model": {"label_embed": 3}}, ["label_embed"]),
    ],
)
def test_an_error_names_the_tensor_that_does_not_fit(
    change: Callable[[Tensors], Any],
    named: list[str],
    tensors: Tensors,
    ram_files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    assert convert_ram(ram_files, tmp_path / "deep" / "out", ram=write(tmp_path, change(tensors))) == 1
    refused(capsys, ["other.pth", *named], tmp_path / "deep")


def refused(capsys: pytest.CaptureFixture, named: list[str], output: Path) -> None:
    """One line on stderr with all of `named`, and nothing written."""
    message = capsys.readouterr().err.split("error: ")[-1]
    assert len(message.splitlines()) == 1
    for name in named:
        assert name in message
    assert not output.exists()


class Innocent:
    """Something that a pickle may not hold."""


def test_a_pickle_with_code_in_it_is_refused(ram_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"model": {"label_embed": Innocent()}}, tmp_path / "evil.pth")
    assert convert_ram(ram_files, tmp_path / "out", ram=tmp_path / "evil.pth") == 1
    refused(capsys, ["evil.pth", "more than tensors"], tmp_path / "out")


def edit(lines: list[str], line: int, text: str | None) -> list[str]:
    """`lines` with one replaced, or left out."""
    return lines[: line - 1] + ([] if text is None else [text]) + lines[line:]


@pytest.mark.parametrize(
    ("which", "line", "text", "named"),
    [
        ("tags", 36, None, ["35 lines", "36", "line 36"]),
        ("thresholds", 36, None, ["36 lines", "35", "line 36"]),
        ("tags", 7, "", ["line 7", "empty"]),
        ("tags", 9, "  ", ["line 9", "empty"]),
        ("tags", 12, "cat", ["line 12", "'cat'", "line 2"]),
        ("tags", 12, " cat ", ["line 12", "'cat'", "line 2"]),
        ("thresholds", 5, "", ["line 5", "empty"]),
        ("thresholds", 5, "high", ["line 5", "'high'"]),
        ("thresholds", 5, "65", ["line 5", "65"]),
        ("thresholds", 5, "nan", ["line 5", "nan"]),
    ],
)
def test_a_wrong_line_is_an_error_with_its_number(
    which: str, line: int, text: str | None, named: list[str], ram_files: Path, tmp_path: Path, capsys: Any
) -> None:
    source = ram_files / {"tags": "tag_list.txt", "thresholds": "tag_list_threshold.txt"}[which]
    (tmp_path / "edited.txt").write_text("\n".join(edit(source.read_text().splitlines(), line, text)) + "\n")
    assert convert_ram(ram_files, tmp_path / "out", **{which: tmp_path / "edited.txt"}) == 1
    refused(capsys, ["edited.txt", *named], tmp_path / "out")


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_line_ends_of_other_systems_change_nothing(ending: str, ram_files: Path, tmp_path: Path) -> None:
    names = (ram_files / "tag_list.txt").read_text().splitlines()
    (tmp_path / "tags.txt").write_bytes(("\ufeff" + "\r\n".join(names) + ending).encode())
    assert convert_ram(ram_files, tmp_path / "out", tags=tmp_path / "tags.txt") == 0
    assert list(RamConfig.from_pretrained(tmp_path / "out").id2label.values()) == names


@pytest.mark.parametrize("name", ["ram", "tags", "thresholds", "overrides"])
def test_a_missing_file_is_named(name: str, ram_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert convert_ram(ram_files, tmp_path / "out", **{name: tmp_path / "nowhere"}) == 1
    refused(capsys, ["nowhere", "no such file"], tmp_path / "out")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"image_size": 96}, ["'image_size'"]),
        ({"vision_config": {"size": 96}}, ["'vision_config.size'"]),
        ({"vision_config": 96}, ["96"]),
        ({"vision_config": {"image_size": "small"}}, ["image_size"]),
        ({"vision_config": {"image_size": 64}}, ["2x2", "(3)"]),
        ({"vision_config": {"image_size": 96, "window_size": -3}}, ["vision_config.window_size", "-3"]),
        ({"vision_config": {"image_size": 96, "depths": [2, 0]}}, ["vision_config.depths", "[2, 0]"]),
        ({"dtype": "float16"}, ["'dtype'", "set by the conversion"]),
        ({"vision_config": {"image_size": 96}, "num_attention_heads": 5}, ["(5)", "(48)"]),
        ({"vision_config": {"image_size": 96}, "num_hidden_layers": 3}, ["missing", "layer.2."]),
        ({"vision_config": {"image_size": 96}, "num_hidden_layers": 1}, ["unexpected", "layer.1."]),
    ],
)
def test_wrong_overrides_are_refused(
    overrides: dict[str, Any], named: list[str], ram_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "overrides.json").write_text(json.dumps(overrides))
    assert convert_ram(ram_files, tmp_path / "out", overrides=tmp_path / "overrides.json") == 1
    refused(capsys, named, tmp_path / "out")


def test_an_output_that_exists_is_replaced_on_request_only(
    ram_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert convert_ram(ram_files, tmp_path / "out") == 0
    (tmp_path / "out" / "mine").touch()
    assert convert_ram(ram_files, tmp_path / "out") == 1
    assert "pass --overwrite to replace it" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine").exists()
    assert convert_ram(ram_files, tmp_path / "out", overwrite=True) == 0
    assert not (tmp_path / "out" / "mine").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_that_holds_a_source_is_refused(
    ram_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "config.json").touch()
    Path(tmp_path / "tags.txt").write_text((ram_files / "tag_list.txt").read_text())
    assert convert_ram(ram_files, tmp_path, tags=tmp_path / "tags.txt", overwrite=True) == 1
    assert "tags.txt, which is an input" in capsys.readouterr().err
    assert (tmp_path / "tags.txt").exists()


def test_an_output_that_is_a_file_is_refused(ram_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "out").write_text("mine")
    assert convert_ram(ram_files, tmp_path / "out") == 1
    assert "is a file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_override_goes_before_what_shapes_say() -> None:
    fields = {"hidden_size": 8, "vision_config": {"image_size": 384, "window_size": 12}}
    assert merge(fields, {"loss_clip": 0.1, "vision_config": {"image_size": 96}}) == {
        "hidden_size": 8,
        "loss_clip": 0.1,
        "vision_config": {"image_size": 96, "window_size": 12},
    }
