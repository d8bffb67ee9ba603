"""Compare each tensor of a converted folder with its source.

    python conversion/verify_checkpoint.py DIR --lion lion.pth --vision eva_vit_g.pth --language-model flan-t5-xl \
        --qformer-tokenizer bert-base-uncased [--overrides FILE.json] \
        [--reference CHECKOUT [--reference-python PYTHON]]

For each part of the model, print the number of tensors and values, the number of tensors that are bitwise equal to
their source (in the dtype of the folder), and the largest difference. The exit code is 0 only if all tensors are equal
and the configuration and the vocabularies match the sources.

`--reference` takes a checkout of https://github.com/JiuTian-VL/JiuTian-LION and also compares the outputs of the folder
with those of the reference for the same files, from the blocks of the vision tower to generated ids
(`output_ladder.py`). The exit code is then 0 only if all outputs are also within 1e-5 and all ids are equal. There is
one known difference: in rare cases, beam search in transformers 5 stops earlier than in 4.42.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from command import run_command
from convert_lion_checkpoint import (
    LANGUAGE_MODEL_FILES,
    TOKENIZER_FILES,
    Conversion,
    Options,
    load_tokenizer,
    read,
    same_bits,
)
from key_map import enumerated
from lion_folder import load_lion_config
from lion_sources import resolve_folder
from output_ladder import check_reference, climb_outputs, output_table
from shards import FolderReader, Slot
from sources import check_weight, load_config
from transformers_lion.configuration_lion import LionConfig
from transformers_lion.processing_lion import LionProcessor

PARTS = {
    "vision tower": re.compile(r"vision_model\."),
    "Q-Former": re.compile(r"(query_tokens|qformer|language_projection)\."),
    "aggregator": re.compile(r"aggregator(_projection)?\."),
    "soft prompt": re.compile(r"soft_prompt\."),
    "adapters and routers": re.compile(r"language_model\..*\.adapter\."),
    "language model": re.compile(r"language_model\."),
}
"""Parts of the model and patterns for their parameters. The first match counts."""

VOLATILE = {"dtype", "architectures", "transformers_version", "_name_or_path", "auto_map", "use_cache"}
"""Fields that saving and loading may change."""


@dataclass
class _Rung:
    """Comparison of one part."""

    num_tensors: int = 0
    num_equal: int = 0
    num_numbers: int = 0
    largest_difference: float = 0.0
    unequal: list[str] = field(default_factory=list)


def part_of(name: str) -> str:
    """Return the part that a parameter belongs to."""
    return next(part for part, pattern in PARTS.items() if pattern.match(name))


def _climb(reader: FolderReader, conversion: Conversion) -> dict[str, _Rung]:
    """Compare all tensors, part by part.

    Raises:
        ValueError: If names or shapes of tensors differ.
    """
    differing = sorted(reader.files.keys() ^ conversion.slots.keys())
    if differing:
        raise ValueError(f"{len(differing)} tensors exist on one side only: {', '.join(differing[:5])}.")
    rungs = {part: _Rung() for part in PARTS}
    for name, slot in tqdm(conversion.slots.items(), unit="tensor", desc="comparing"):
        ours = reader[name]
        check_weight(name, ours)
        theirs = conversion.make(name, Slot(slot.shape, ours.dtype))
        if ours.shape != theirs.shape:
            raise ValueError(f"{name} has shape {tuple(ours.shape)}, but its source has {tuple(theirs.shape)}.")
        rung = rungs[part_of(name)]
        rung.num_tensors += 1
        rung.num_numbers += ours.numel()
        if same_bits(ours, theirs):
            rung.num_equal += 1
        else:
            rung.unequal.append(name)
            difference = (ours.float() - theirs.float()).abs().max().item()
            rung.largest_difference = max(rung.largest_difference, difference)
    return {part: rung for part, rung in rungs.items() if rung.num_tensors}


def _ladder(rungs: Mapping[str, _Rung]) -> str:
    """Format the comparison as a table."""
    lines = [f"{'part':<22}{'tensors':>8}{'equal':>8}{'numbers':>16}{'largest difference':>20}"]
    lines += [
        f"{part:<22}{rung.num_tensors:>8}{rung.num_equal:>8}{rung.num_numbers:>16,}{rung.largest_difference:>20.3g}"
        for part, rung in rungs.items()
    ]
    return "\n".join(lines)


def _verify_tensors(folder: Path, conversion: Conversion) -> bool:
    """Compare the tensors, print the table, and return whether all are equal."""
    rungs = _climb(FolderReader(folder), conversion)
    print(_ladder(rungs))
    unequal = [name for rung in rungs.values() for name in rung.unequal]
    if unequal:
        print(f"error: {len(unequal)} tensors differ from their sources: {enumerated(unequal)}", file=sys.stderr)
    return not unequal


def _verify_settings(folder: Path, config: LionConfig, processor: LionProcessor) -> None:
    """Compare the configuration and the tokenizers.

    Raises:
        ValueError: If one is missing or differs from the sources.
    """
    ours, theirs = (flat(found.to_dict()) for found in (load_lion_config(folder), config))
    for name in sorted(ours.keys() | theirs.keys()):
        if name.rsplit(".", 1)[-1] not in VOLATILE and ours.get(name) != theirs.get(name):
            raise ValueError(f"config.json: {name} is {ours.get(name)!r}, but the sources have {theirs.get(name)!r}.")
    pairs = (("", processor.tokenizer), ("qformer_tokenizer", processor.qformer_tokenizer))
    for part, tokenizer in pairs:
        if load_tokenizer(AutoTokenizer, folder / part).get_vocab() != tokenizer.get_vocab():
            raise ValueError(f"{folder / part}: the vocabulary of the tokenizer differs from the source's.")


def flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested fields to dotted names."""
    result: dict[str, Any] = {}
    for name, value in fields.items():
        result.update(flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return result


def _verify_outputs(options: Options, config: LionConfig, checkout: Path, python: str) -> bool:
    """Compare the outputs with the reference's, print the table, and return whether all agree."""
    files = {
        "lion": options.lion,
        "vision": options.vision,
        "language_model": resolve_folder(options.language_model, LANGUAGE_MODEL_FILES),
        "qformer_tokenizer": resolve_folder(options.qformer_tokenizer, TOKENIZER_FILES),
    }
    rungs = climb_outputs(options.output, config, files, checkout, python)
    print(output_table(rungs))
    return all(rung.holds for rung in rungs)


def _parse_arguments(argv: list[str] | None) -> tuple[Options, Path | None, str]:
    """Parse the conversion to compare with, the reference's checkout, and its Python."""
    parser = argparse.ArgumentParser(description="Compare a converted folder with its sources.")
    parser.add_argument("folder", type=Path, help="converted folder")
    parser.add_argument("--lion", type=Path, required=True)
    parser.add_argument("--vision", type=Path)
    parser.add_argument("--language-model", required=True)
    parser.add_argument("--qformer-tokenizer", required=True)
    parser.add_argument("--overrides", type=Path)
    parser.add_argument("--reference", type=Path, metavar="CHECKOUT", help="reference code to compare outputs with")
    parser.add_argument(
        "--reference-python",
        default=sys.executable,
        metavar="PYTHON",
        help="Python that has the reference's requirements",
    )
    arguments = vars(parser.parse_args(argv))
    reference, python = arguments.pop("reference"), arguments.pop("reference_python")
    return Options(output=arguments.pop("folder"), **arguments), reference, python


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options, reference, python = _parse_arguments(argv)

    def action() -> bool:
        if reference is not None:
            check_reference(reference, python)
        load_config(options.output, LionConfig.model_type)
        config, processor, found = read(options)
        equal = _verify_tensors(options.output, Conversion(found, config, torch.float32))
        _verify_settings(options.output, config, processor)
        if reference is not None:
            equal &= _verify_outputs(options, config, reference, python)
        return equal

    return run_command(action)


if __name__ == "__main__":
    sys.exit(main())
