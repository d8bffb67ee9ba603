"""Convert RAM's original file and its two text files into a tagger's folder.

    python conversion/convert_ram_checkpoint.py --ram ram_swin_large_14m.pth --tags ram_tag_list.txt \
        --thresholds ram_tag_list_threshold.txt --output DIR [--overrides FILE.json] [--overwrite]

`DIR` then loads with `from_pretrained`. Sizes come from the tensors' shapes; what shapes cannot tell (image size, the
head's number of attention heads) is the released model's or comes from `--overrides`, a JSON object of `RamConfig`
fields such as `{"vision_config": {"image_size": 224}}`. Every tensor of the file is used, or is on the list of those
that tagging does not need (`ram_keys.DROPPABLE`), or is an error. Nothing is written if anything is wrong.
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
    """The lines of a text file, without the blanks around them.

    Raises:
        SourceError: if it is missing, is not UTF-8, is empty, or has an empty line.
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
    """The tag names.

    Raises:
        SourceError: if the file cannot be used, or names a tag twice.
    """
    names = _read_lines(path)
    first: dict[str, int] = {}
    for line, name in enumerate(names, start=1):
        if first.setdefault(name, line) != line:
            raise SourceError(f"{path}, line {line}: the tag {name!r} is there already, in line {first[name]}.")
    return names


def _read_thresholds(path: Path) -> list[float]:
    """The thresholds.

    Raises:
        SourceError: if the file cannot be used, or a line is no number between 0 and 1.
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
    """The tag names and their thresholds.

    Raises:
        SourceError: as of both files, and if they are of different lengths.
    """
    names, limits = _read_tags(tags), _read_thresholds(thresholds)
    if len(names) != len(limits):
        line = min(len(names), len(limits)) + 1
        longer, shorter = (tags, thresholds) if len(names) > len(limits) else (thresholds, tags)
        raise SourceError(
            f"{tags} has {len(names)} lines but {thresholds} has {len(limits)}: line {line} of {longer} has no "
            f"partner in {shorter}."
        )
    return names, limits


def infer_fields(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The fields of `RamConfig` that the tensors' shapes tell.

    Raises:
        KeyMapError: if a tensor that tells a size is missing.
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
    """The fields of `SwinConfig` that the tensors' shapes tell."""
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
    """The window size of a bias table of (2w - 1)^2 rows.

    Raises:
        ValueError: if there is none.
    """
    side = math.isqrt(num_biases)
    if side**2 != num_biases or side % 2 == 0:
        raise ValueError(f"a bias table has {num_biases} rows, which is no (2w - 1)^2 of any window size w.")
    return (side + 1) // 2


def _convert_tensors(tensors: Mapping[str, torch.Tensor], config: RamConfig) -> dict[str, torch.Tensor]:
    """Tensors in the reference's names to this package's, in float32.

    Raises:
        KeyMapError: if a tensor is missing or unexpected.
        ValueError: if a tensor is of another shape than the configuration says.
    """
    with torch.device("meta"):
        expected = RamForImageTagging(config).state_dict()
    entries = RAM_KEYS.from_converted(tensors)  # refuses what no row of the map knows
    wanted = {entry.converted for entry in RAM_KEYS.from_originals(expected)}
    for problem, names in (("missing", wanted - set(tensors)), ("not expected", set(tensors) - wanted)):
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
                    f"the tensor {entry.converted} makes {name} {tuple(converted[name].shape)}, but the configuration "
                    f"needs {tuple(expected[name].shape)}."
                )
    return converted


def save(model: RamForImageTagging, folder: Path) -> None:
    """Write the tagger's folder."""
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
    """Convert the three files and write the tagger's folder.

    Args:
        ram: RAM's original file.
        tags: the tag names, one a line.
        thresholds: their thresholds, one a line.
        output: folder to write.
        overrides: JSON file with fields of `RamConfig` to use instead of what shapes and defaults say.
        overwrite: whether a folder that exists is replaced.

    Returns:
        The model that was written.

    Raises:
        ValueError: if anything is wrong; nothing is written then.
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
    """The model of RAM's file.

    Raises:
        SourceError: if the file does not fit the tags, or cannot be used.
    """
    content = load_file(ram)
    try:
        tensors = {name: content[key] for name, key in kept_names(content).items()}
        fields = merge(infer_fields(tensors), overrides)
        for name, tensor in tensors.items():
            check_weight(name, tensor)
            if count_nonfinite(tensor):
                raise ValueError(f"{name} holds {count_nonfinite(tensor)} NaN or infinite values.")
        if len(names) != tensors["label_embed"].shape[0]:
            raise ValueError(
                f"it knows {tensors['label_embed'].shape[0]} tags, but there are {len(names)} lines of tags."
            )
        config = build_config(RamConfig, {"id2label": dict(enumerate(names)), "thresholds": limits} | fields)
        converted = _convert_tensors(tensors, config)
    except ValueError as error:
        raise SourceError(f"{ram}: {error}") from error
    return RamForImageTagging.from_pretrained(None, config=config, state_dict=converted)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--ram", type=Path, required=True, help="RAM's original file, such as ram_swin_large_14m.pth")
    parser.add_argument("--tags", type=Path, required=True, help="the tag names, one a line")
    parser.add_argument("--thresholds", type=Path, required=True, help="their thresholds, one a line")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--overrides", type=Path, help="JSON file with fields of RamConfig")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    arguments = parser.parse_args(argv)

    def action() -> bool:
        convert(**vars(arguments))
        print(f"wrote {arguments.output}")
        return True

    return run_command(action)


if __name__ == "__main__":
    sys.exit(main())
