"""Convert RAM's original file and its two text files to the folder of a tagger.

    python conversion/convert_ram_checkpoint.py --ram ram_swin_large_14m.pth --tags ram_tag_list.txt \
        --thresholds ram_tag_list_threshold.txt --output DIR [--overrides FILE.json] [--overwrite]

`from_pretrained` then loads `DIR`. Sizes are inferred from the shapes of the tensors. Fields that shapes do not define
(the image size and the number of attention heads of the head) default to those of the released model. Set them with
`--overrides`, a JSON file with `RamConfig` fields such as `{"vision_config": {"image_size": 224}}`. A tensor that is
neither used nor listed as unnecessary for tagging (`ram_keys.DROPPABLE`) is an error. Nothing is written if anything is
wrong.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from command import run_command
from infer_config import Shapes, build_config, check_overrides, merge
from key_map import KeyMapError, enumerated, revert
from ram_bias_tables import resize_bias_table
from ram_keys import RAM_KEYS, kept_names
from sources import SourceError, check_file, check_weight, count_nonfinite, load_file, load_json
from targets import check_room, replacing
from transformers_lion.ram import RamConfig, RamForImageTagging, RamImageProcessor
from transformers_lion.ram.configuration_ram import SWIN_LARGE_384

BIAS_TABLE = "relative_position_bias_table"


def _read_lines(path: Path) -> list[str]:
    """Read the lines of a text file, stripped of surrounding whitespace.

    Raises:
        SourceError: If the file is missing, is not UTF-8, is empty, or has an empty line.
    """
    check_file(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not a UTF-8 text file ({error}).") from error
    if not text.strip():
        raise SourceError(f"{path}: the file is empty.")
    lines = [line.strip() for line in text.removesuffix("\n").split("\n")]
    if "" in lines:
        raise SourceError(f"{path}, line {lines.index('') + 1}: the line is empty.")
    return lines


def _read_tags(path: Path) -> list[str]:
    """Read the tag names.

    Raises:
        SourceError: If the file cannot be used or contains a duplicate tag.
    """
    names = _read_lines(path)
    first: dict[str, int] = {}
    for line, name in enumerate(names, start=1):
        if first.setdefault(name, line) != line:
            raise SourceError(f"{path}, line {line}: duplicate tag {name!r}, first found in line {first[name]}.")
    return names


def _read_thresholds(path: Path) -> list[float]:
    """Read the thresholds.

    Raises:
        SourceError: If the file cannot be used or a line is not a number between 0 and 1.
    """
    thresholds = []
    for line, text in enumerate(_read_lines(path), start=1):
        try:
            threshold = float(text)
        except ValueError as error:
            raise SourceError(f"{path}, line {line}: {text!r} is not a number.") from error
        if not 0 <= threshold <= 1:
            raise SourceError(f"{path}, line {line}: the threshold {text} is not between 0 and 1.")
        thresholds.append(threshold)
    return thresholds


def _read_tag_files(tags: Path, thresholds: Path) -> tuple[list[str], list[float]]:
    """Read the tag names and their thresholds.

    Raises:
        SourceError: If a file cannot be used or their lengths differ.
    """
    names, limits = _read_tags(tags), _read_thresholds(thresholds)
    if len(names) != len(limits):
        line = min(len(names), len(limits)) + 1
        longer, shorter = (tags, thresholds) if len(names) > len(limits) else (thresholds, tags)
        raise SourceError(
            f"{tags} has {len(names)} lines but {thresholds} has {len(limits)}: line {line} of {longer} has no "
            f"counterpart in {shorter}."
        )
    return names, limits


def infer_fields(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Infer the fields of `RamConfig` from the shapes of the tensors.

    Raises:
        KeyMapError: If a tensor that defines a size is missing.
    """
    shapes = Shapes(tensors)
    layer = "tagging_head.encoder.layer."
    label_width = "wordvec_proj.weight" if "wordvec_proj.weight" in tensors else None
    return {
        "vision_config": _infer_vision_fields(shapes),
        "label_embed_dim": shapes.sizes("label_embed", 2)[1],
        "encoder_hidden_size": shapes.sizes("image_proj.weight", 2)[0],
        "hidden_size": shapes.sizes(label_width, 2)[0] if label_width else shapes.sizes("fc.weight", 2)[1],
        "num_hidden_layers": shapes.count(layer),
        "intermediate_size": shapes.sizes(f"{layer}0.intermediate.dense.weight", 2)[0],
    }


def _infer_vision_fields(shapes: Shapes) -> dict[str, Any]:
    """Infer the fields of `SwinConfig` from the shapes of the tensors."""
    width, channels, patch_size, _ = shapes.sizes("visual_encoder.patch_embed.proj.weight", 4)
    stages = [f"visual_encoder.layers.{stage}." for stage in range(shapes.count("visual_encoder.layers."))]
    tables = [shapes.sizes(f"{stage}blocks.0.attn.{BIAS_TABLE}", 2) for stage in stages]
    return SWIN_LARGE_384 | {
        "embed_dim": width,
        "num_channels": channels,
        "patch_size": patch_size,
        "depths": [shapes.count(f"{stage}blocks.") for stage in stages],
        "num_heads": [heads for _, heads in tables],
        "window_size": _window_of(tables[0][0]),
        "mlp_ratio": shapes.sizes("visual_encoder.layers.0.blocks.0.mlp.fc1.weight", 2)[0] / width,
        "qkv_bias": shapes.has("visual_encoder.layers.0.blocks.0.attn.qkv.bias"),
    }


def _window_of(num_biases: int) -> int:
    """Compute the window size w from the (2w - 1)^2 rows of a bias table.

    Raises:
        ValueError: If there is no such w.
    """
    side = math.isqrt(num_biases)
    if side**2 != num_biases or side % 2 == 0:
        raise ValueError(f"a bias table has {num_biases} rows, which is not (2w - 1)^2 for any window size w.")
    return (side + 1) // 2


def _convert_tensors(tensors: Mapping[str, torch.Tensor], config: RamConfig) -> dict[str, torch.Tensor]:
    """Convert the reference's tensors to this package's names, in float32.

    Raises:
        KeyMapError: If a tensor is missing or unexpected.
        ValueError: If the shape of a tensor does not match the configuration.
    """
    with torch.device("meta"):
        expected = RamForImageTagging(config).state_dict()
    entries = RAM_KEYS.from_converted(tensors)  # raises on names that are not in the map
    wanted = {entry.converted for entry in RAM_KEYS.from_originals(expected)}
    for problem, names in (("missing", wanted - set(tensors)), ("unexpected", set(tensors) - wanted)):
        if names:
            raise KeyMapError(f"{len(names)} tensors are {problem}: {enumerated(sorted(names))}")

    def source(name: str) -> torch.Tensor:
        tensor = tensors[name].float()
        return resize_bias_table(tensor, config.vision_config.window_size) if name.endswith(BIAS_TABLE) else tensor

    converted = dict(revert(entries, source))
    for entry in entries:
        for name in entry.originals:
            if converted[name].shape != expected[name].shape:
                raise ValueError(
                    f"{entry.converted} is converted to {name} of shape {tuple(converted[name].shape)}, but the "
                    f"configuration expects {tuple(expected[name].shape)}."
                )
    return converted


def save(model: RamForImageTagging, folder: Path) -> None:
    """Save the model and its image processor."""
    height, width = model.config.image_size
    model.save_pretrained(folder)
    RamImageProcessor(size={"height": height, "width": width}).save_pretrained(folder)


def convert(
    ram: str | Path,
    tags: str | Path,
    thresholds: str | Path,
    output: str | Path,
    overrides: str | Path | None = None,
    overwrite: bool = False,
) -> RamForImageTagging:
    """Convert the three files and write the folder of the tagger.

    Args:
        ram: RAM's original file.
        tags: File with one tag name per line.
        thresholds: File with one threshold per line, in the order of the tags.
        output: Folder to write.
        overrides: JSON file with `RamConfig` fields that replace inferred values and defaults.
        overwrite: Whether to replace an existing folder.

    Returns:
        The model that was written.

    Raises:
        ValueError: If anything is wrong. Nothing is written in that case.
    """
    ram, tags, thresholds = Path(ram), Path(tags), Path(thresholds)
    sources = [ram, tags, thresholds, *([Path(overrides)] if overrides else [])]
    with replacing(Path(output), overwrite, sources) as folder:
        given = load_json(Path(overrides)) if overrides else {}
        check_overrides(RamConfig, given)
        model = read(ram, *_read_tag_files(tags, thresholds), given)
        check_room(Path(output), sum(tensor.nbytes for tensor in model.state_dict().values()))
        save(model, folder)
    return model


def read(ram: Path, names: list[str], limits: list[float], overrides: Mapping[str, Any]) -> RamForImageTagging:
    """Load the model from RAM's file.

    Raises:
        SourceError: If the file cannot be used or does not match the tags.
    """
    content = load_file(ram)
    try:
        tensors = {name: content[key] for name, key in kept_names(content).items()}
        fields = merge(infer_fields(tensors), overrides)
        for name, tensor in tensors.items():
            check_weight(name, tensor)
            if count_nonfinite(tensor):
                raise ValueError(f"{name} contains {count_nonfinite(tensor)} NaN or infinite values.")
        if len(names) != tensors["label_embed"].shape[0]:
            raise ValueError(f"it has {tensors['label_embed'].shape[0]} tags, but the list has {len(names)} lines.")
        config = build_config(RamConfig, {"id2label": dict(enumerate(names)), "thresholds": limits} | fields)
        converted = _convert_tensors(tensors, config)
    except ValueError as error:
        raise SourceError(f"{ram}: {error}") from error
    return RamForImageTagging.from_pretrained(None, config=config, state_dict=converted)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--ram", type=Path, required=True, help="RAM's original file, such as ram_swin_large_14m.pth")
    parser.add_argument("--tags", type=Path, required=True, help="file with one tag name per line")
    parser.add_argument("--thresholds", type=Path, required=True, help="file with one threshold per line")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--overrides", type=Path, help="JSON file with fields of RamConfig")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output folder")
    arguments = parser.parse_args(argv)

    def action() -> bool:
        convert(**vars(arguments))
        print(f"wrote {arguments.output}")
        return True

    return run_command(action)


if __name__ == "__main__":
    sys.exit(main())
