"""Convert RAM's original file and its two text files into a tagger's folder.

    python conversion/convert_ram_checkpoint.py --ram ram_swin_large_14m.pth --tags ram_tag_list.txt \
        --thresholds ram_tag_list_threshold.txt --output DIR [--overrides FILE.json]

`DIR` then loads with `from_pretrained`. Sizes come from the tensors' shapes; what shapes cannot tell (image size, the
head's number of attention heads) is the released model's or comes from `--overrides`, a JSON object of `RamConfig`
fields such as `{"vision_config": {"image_size": 224}}`. Every tensor of the file is used, or is on the list of those
that tagging does not need (`ram_keys.DROPPABLE`), or is an error. Nothing is written if anything is wrong.
"""

import argparse
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from infer_config import build_config
from key_map import KeyMapError, revert
from ram_bias_tables import resize_bias_table
from ram_keys import RAM_KEYS, kept_names
from sources import SourceError, load_file, load_json
from transformers_lion.ram import RamConfig, RamForImageTagging, RamImageProcessor
from transformers_lion.ram.configuration_ram import SWIN_LARGE_384

BIAS_TABLE = "relative_position_bias_table"


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without the blanks around them.

    Raises:
        SourceError: if it is missing, is not UTF-8, is empty, or has an empty line.
    """
    if not path.is_file():
        raise SourceError(f"{path}: there is no such file.")
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


def read_tags(path: Path) -> list[str]:
    """The tag names.

    Raises:
        SourceError: if the file cannot be used, or names a tag twice.
    """
    names = read_lines(path)
    first: dict[str, int] = {}
    for line, name in enumerate(names, start=1):
        if first.setdefault(name, line) != line:
            raise SourceError(f"{path}, line {line}: the tag {name!r} is there already, in line {first[name]}.")
    return names


def read_thresholds(path: Path) -> list[float]:
    """The thresholds.

    Raises:
        SourceError: if the file cannot be used, or a line is no number between 0 and 1.
    """
    thresholds = []
    for line, text in enumerate(read_lines(path), start=1):
        try:
            threshold = float(text)
        except ValueError as error:
            raise SourceError(f"{path}, line {line}: {text!r} is not a number.") from error
        if not 0 <= threshold <= 1:
            raise SourceError(f"{path}, line {line}: the threshold {text} is not between 0 and 1.")
        thresholds.append(threshold)
    return thresholds


def read_tag_files(tags: Path, thresholds: Path) -> tuple[list[str], list[float]]:
    """The tag names and their thresholds.

    Raises:
        SourceError: as of both files, and if they are of different lengths.
    """
    names, limits = read_tags(tags), read_thresholds(thresholds)
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
    label_projection = tensors.get("wordvec_proj.weight")
    layer = "tagging_head.encoder.layer."
    return {
        "vision_config": infer_vision_fields(tensors),
        "label_embed_dim": shape_of(tensors, "label_embed")[1],
        "encoder_hidden_size": shape_of(tensors, "image_proj.weight")[0],
        "hidden_size": shape_of(tensors, "fc.weight")[1] if label_projection is None else label_projection.shape[0],
        "num_hidden_layers": count(tensors, layer),
        "intermediate_size": shape_of(tensors, f"{layer}0.intermediate.dense.weight")[0],
    }


def infer_vision_fields(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The fields of `SwinConfig` that the tensors' shapes tell."""
    width, channels, patch_size, _ = shape_of(tensors, "visual_encoder.patch_embed.proj.weight")
    stages = [f"visual_encoder.layers.{stage}." for stage in range(count(tensors, "visual_encoder.layers."))]
    tables = [shape_of(tensors, f"{stage}blocks.0.attn.{BIAS_TABLE}") for stage in stages]
    return SWIN_LARGE_384 | {
        "embed_dim": width,
        "num_channels": channels,
        "patch_size": patch_size,
        "depths": [count(tensors, f"{stage}blocks.") for stage in stages],
        "num_heads": [heads for _, heads in tables],
        "window_size": window_of(tables[0][0]),
        "mlp_ratio": shape_of(tensors, "visual_encoder.layers.0.blocks.0.mlp.fc1.weight")[0] / width,
        "qkv_bias": "visual_encoder.layers.0.blocks.0.attn.qkv.bias" in tensors,
    }


def shape_of(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Size:
    """The shape of a tensor.

    Raises:
        KeyMapError: if it is not there.
    """
    if name not in tensors:
        raise KeyMapError(f"the tensor {name} is missing, which tells a size of the model.")
    return tensors[name].shape


def count(tensors: Mapping[str, torch.Tensor], prefix: str) -> int:
    """How many numbers stand behind `prefix`, at least 1."""
    found = (re.match(re.escape(prefix) + r"([0-9]+)\.", name) for name in tensors)
    return max(1, len({match[1] for match in found if match}))


def window_of(num_biases: int) -> int:
    """The window size of a bias table of (2w - 1)^2 rows.

    Raises:
        ValueError: if there is none.
    """
    side = math.isqrt(num_biases)
    if side**2 != num_biases or side % 2 == 0:
        raise ValueError(f"a bias table has {num_biases} rows, which is no (2w - 1)^2 of any window size w.")
    return (side + 1) // 2


def override(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with `overrides` before them, the vision tower's one by one.

    Raises:
        ValueError: if an override is no field of the configuration.
    """
    known = {"": RamConfig.__dataclass_fields__, "vision_config.": RamConfig.sub_configs["vision_config"]().to_dict()}
    vision = overrides.get("vision_config", {})
    if not isinstance(vision, Mapping):
        raise ValueError(f"overrides: vision_config is {vision!r}, but must be a JSON object.")
    for prefix, given in (("", overrides), ("vision_config.", vision)):
        for name in given:
            if name not in known[prefix]:
                raise ValueError(f"overrides: there is no field {prefix + name!r}.")
    return {**fields, **overrides, "vision_config": {**fields["vision_config"], **vision}}


def convert_tensors(tensors: Mapping[str, torch.Tensor], config: RamConfig) -> dict[str, torch.Tensor]:
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
            raise KeyMapError(f"{len(names)} tensors are {problem}: {', '.join(sorted(names))}.")

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


def save(model: RamForImageTagging, output: Path) -> None:
    """Write the tagger's folder: in full, or not at all.

    Raises:
        SourceError: if `output` is a file.
    """
    if output.exists() and not output.is_dir():
        raise SourceError(f"{output}: is a file, but the output is a folder.")
    height, width = model.config.image_size
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        model.save_pretrained(partial)
        RamImageProcessor(size={"height": height, "width": width}).save_pretrained(partial)
        output.mkdir(parents=True, exist_ok=True)
        for file in partial.iterdir():
            file.replace(output / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def convert(
    ram: str | Path,
    tags: str | Path,
    thresholds: str | Path,
    output: str | Path,
    overrides: Mapping[str, Any] | None = None,
) -> RamForImageTagging:
    """Convert RAM's files.

    Args:
        ram: the original `.pth`.
        tags, thresholds: text files, one line a tag.
        output: folder to write.
        overrides: fields of `RamConfig`, to go before what shapes and defaults say.

    Returns:
        The model that was written.

    Raises:
        ValueError: if anything is wrong; nothing is written then.
    """
    ram, output = Path(ram), Path(output)
    names, limits = read_tag_files(Path(tags), Path(thresholds))
    content = load_file(ram)
    try:
        tensors = {name: content[key] for name, key in kept_names(content).items()}
        fields = override(infer_fields(tensors), overrides or {})
        if len(names) != tensors["label_embed"].shape[0]:
            raise ValueError(f"it knows {tensors['label_embed'].shape[0]} tags, but {tags} has {len(names)} lines.")
        config = build_config(RamConfig, {"id2label": dict(enumerate(names)), "thresholds": limits} | fields)
        converted = convert_tensors(tensors, config)
    except ValueError as error:
        raise SourceError(f"{ram}: {error}") from error
    model = RamForImageTagging.from_pretrained(None, config=config, state_dict=converted)
    save(model, output)
    return model


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--ram", type=Path, required=True, help="RAM's original file, such as ram_swin_large_14m.pth")
    parser.add_argument("--tags", type=Path, required=True, help="the tag names, one a line")
    parser.add_argument("--thresholds", type=Path, required=True, help="their thresholds, one a line")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--overrides", type=Path, help="JSON file with fields of RamConfig")
    arguments = parser.parse_args(argv)
    try:
        overrides = load_json(arguments.overrides) if arguments.overrides else None
        convert(arguments.ram, arguments.tags, arguments.thresholds, arguments.output, overrides)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
