"""Convert LION's original files to a folder that `from_pretrained` loads.

    python conversion/convert_lion_checkpoint.py --lion lion.pth --vision eva_vit_g.pth --language-model flan-t5-xl \
        --qformer-tokenizer bert-base-uncased --output lion-flant5-xl

`docs/checkpoint.md` describes the contents of the files. The conversion never guesses: a key that is neither mapped nor
listed as droppable is an error, and so is a missing key. Tensors are read, converted and written one at a time, then
read back and compared. The output folder appears only when all of this has succeeded.
"""

import argparse
import math
import re
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import AutoTokenizer, BertTokenizer, GenerationConfig

from command import run_command
from infer_config import check_overrides, infer_config
from key_map import Entry, convert
from lion_folder import differences, parameter_shapes
from lion_keys import LION_KEYS
from lion_sources import NUM_VISION_BLOCKS, LionTensors, read_sources, resolve_folder
from shards import FolderReader, Shard, Slot, plan_shards, write_index, write_shard
from sources import SourceError, check_file, count_nonfinite, load_config, load_json, reason_of, short_name
from targets import TargetError, check_room, replacing
from transformers_lion.configuration_lion import LionConfig
from transformers_lion.image_processing_lion import LionImageProcessor
from transformers_lion.modeling_lion import LionForConditionalGeneration
from transformers_lion.pipelines import TAGGER_FOLDER
from transformers_lion.processing_lion import LionProcessor
from transformers_lion.ram import RamConfig

GENERATION_DEFAULTS = {"num_beams": 5, "max_new_tokens": 256, "min_length": 1, "repetition_penalty": 1.5}
"""Generation defaults of the reference. Options that it leaves at 1 or off are also off in transformers."""

LARGE = 10**9
"""Number of parameters from which `--dtype auto` selects bfloat16, which the reference uses for its language model."""

FROZEN = re.compile(r"vision_model\.(?!post_layernorm)|language_model\.(?!.*\.adapter\.)")
"""Parameters that LION's training does not change, by their converted names."""

POSITION_TABLE = "vision_model.embeddings.position_embedding"
LANGUAGE_MODEL_FILES = ("*.json", "*.safetensors", "*.model")
TOKENIZER_FILES = ("*.json", "vocab.txt")
VOCABULARIES = ("tokenizer.json", "spiece.model", "vocab.txt")


class Conversion:
    """Converts the original tensors one at a time.

    Args:
        found: Original tensors.
        config: Configuration of the converted model.
        dtype: Dtype of the weights. `None` selects the default for the size of the model.
        trained_in_float32: Whether to keep the weights that LION's training changed in float32.

    Raises:
        ValueError: If keys are unknown or missing, or shapes differ. The message names them.
    """

    def __init__(
        self,
        found: LionTensors,
        config: LionConfig,
        dtype: torch.dtype | None = None,
        trained_in_float32: bool = False,
    ):
        self.tensors = found.tensors
        entries = LION_KEYS.from_originals(found.tensors)
        self.entries: dict[str, Entry] = {entry.converted: entry for entry in entries}
        shapes = parameter_shapes(config)
        self._check_shapes(shapes)
        if dtype is None:
            size = sum(math.prod(shape) for shape in shapes.values())
            dtype = torch.bfloat16 if size >= LARGE else torch.float32
        self.dtype = dtype
        trained = torch.float32 if trained_in_float32 else dtype
        self.slots = {name: Slot(shape, dtype if FROZEN.match(name) else trained) for name, shape in shapes.items()}

    def _check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for entry in self.entries.values():
            partners = {key: tuple(self.tensors[key].shape) for key in entry.originals}
            if len(partners) > 1 and (len(set(partners.values())) > 1 or () in partners.values()):
                raise ValueError(
                    f"{', '.join(partners)} are joined into one tensor, but have shapes {[*partners.values()]}."
                )
        made = convert(self.entries.values(), lambda key: self.tensors[key].to("meta"))
        found = {name: tuple(tensor.shape) for name, tensor in made}
        if len(found.get(POSITION_TABLE, ())) == 3:  # a table for another grid is resized
            first, _, width = found[POSITION_TABLE]
            found[POSITION_TABLE] = (first, shapes[POSITION_TABLE][1], width)
        problems = differences(found, shapes)
        if problems:
            raise ValueError(f"The files do not belong to one model: {problems}.")

    def make(self, name: str, slot: Slot) -> torch.Tensor:
        """Convert one tensor."""
        entry = self.entries[name]
        tensor = entry.rule.forward(*(self.tensors[key] for key in entry.originals))
        if name == POSITION_TABLE:
            tensor = resize_positions(tensor, slot.shape[1])
        return tensor.to(slot.dtype)

    def check_finite(self, name: str, made: torch.Tensor) -> None:
        """Raise `ValueError` if a converted tensor contains NaN or infinity. The message names the source or the "
        "dtype."""
        found = count_nonfinite(made)
        if not found:
            return
        keys = self.entries[name].originals
        for key in keys:
            count = count_nonfinite(self.tensors[key])
            if count:
                raise ValueError(f"{key} contains {count} NaN or infinite values; pass --allow-nonfinite to keep them.")
        raise ValueError(
            f"{', '.join(keys)}: {found} values are too large for {short_name(made.dtype)}; choose another --dtype, or "
            "pass --allow-nonfinite to make them infinite."
        )


def resize_positions(table: torch.Tensor, num_positions: int) -> torch.Tensor:
    """Resize (1, P, V) to (1, `num_positions`, V) with bicubic interpolation over the grid. The row of the CLS token is
    kept.
    """
    if table.shape[1] == num_positions:
        return table
    old, new = round((table.shape[1] - 1) ** 0.5), round((num_positions - 1) ** 0.5)
    grid = table[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)


def _build_processor(language_model: Path, qformer_tokenizer: Path) -> LionProcessor:
    """Build the processor from the folders of the two tokenizers.

    Raises:
        SourceError: If a folder has no tokenizer.
    """
    bert = load_tokenizer(BertTokenizer, qformer_tokenizer)
    bert.add_special_tokens({"bos_token": "[DEC]"})
    # the reference's version of transformers cleans up tokenization spaces by default
    t5 = load_tokenizer(AutoTokenizer, language_model, clean_up_tokenization_spaces=True)
    return LionProcessor(LionImageProcessor(), t5, bert)


def load_tokenizer(tokenizer_class: Any, folder: Path, **options: Any) -> Any:
    """Load the tokenizer in a folder.

    Raises:
        SourceError: If there is none.
    """
    found = [folder / name for name in VOCABULARIES if (folder / name).is_file()]
    if not found:
        raise SourceError(f"{folder}: no tokenizer found ({' or '.join(VOCABULARIES)}).")
    for path in found:
        check_file(path)
    try:
        return tokenizer_class.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:  # transformers and tokenizers raise many kinds of errors
        raise SourceError(f"{folder}: its tokenizer cannot be loaded ({reason_of(error)}).") from error


def _check_vocabularies(config: LionConfig, processor: LionProcessor) -> None:
    """Raise `ValueError` if a tokenizer does not match its embedding table."""
    tokens, rows = len(processor.tokenizer), config.text_config.vocab_size
    if tokens > rows:  # FlanT5's table has unused rows
        raise ValueError(f"The language model's tokenizer has {tokens} tokens, but its embedding has only {rows} rows.")
    for role in ("pad_token_id", "eos_token_id"):
        theirs, ours = getattr(processor.tokenizer, role), getattr(config.text_config, role)
        if theirs != ours:
            raise ValueError(f"The language model's tokenizer has {role} {theirs}, but its configuration has {ours}.")
    if processor.soft_prompt_token not in processor.tokenizer.get_vocab():
        raise ValueError(f"The language model's tokenizer has no {processor.soft_prompt_token}, so it is not FlanT5's.")
    tokens, rows = len(processor.qformer_tokenizer), config.qformer_config.vocab_size
    if config.uses_qformer and tokens != rows:
        raise ValueError(
            f"The Q-Former's tokenizer has {tokens} tokens including [DEC], but its embedding has {rows} rows."
        )


@dataclass(frozen=True)
class Options:
    """Command-line options; see `_parse_arguments`."""

    lion: Path
    vision: Path | None
    language_model: Path | str
    qformer_tokenizer: Path | str
    output: Path
    overrides: Path | None = None
    tagger: Path | None = None
    dtype: str = "auto"
    trained_in_float32: bool = False
    max_shard_size: float = 2.0
    allow_nonfinite: bool = False
    overwrite: bool = False


def _convert_checkpoint(options: Options) -> None:
    """Convert the files, write the folder, compare it with the files, and print a report.

    Raises:
        ValueError: If anything is wrong. Nothing is written in that case.
        OSError: If the folder cannot be written.
    """
    start = time.monotonic()
    with replacing(options.output, options.overwrite, _source_paths(options)) as folder:
        if options.tagger is not None:
            _check_tagger(options.tagger)
        config, processor, found = read(options)
        conversion = Conversion(
            found,
            config,
            None if options.dtype == "auto" else getattr(torch, options.dtype),
            options.trained_in_float32,
        )
        config.dtype = conversion.dtype
        shards = plan_shards(conversion.slots, int(options.max_shard_size * 1e9))
        tagger = options.tagger.rglob("*") if options.tagger else ()
        room = sum(shard.num_bytes for shard in shards) + sum(path.stat().st_size for path in tagger)
        check_room(options.output, room)
        folder.mkdir()
        digests = _write_weights(folder, shards, conversion, options.allow_nonfinite)
        _write_settings(folder, config, processor)
        if options.tagger is not None:
            shutil.copytree(options.tagger, folder / TAGGER_FOLDER)
        compare(folder, conversion)
    print(report(options.output, found, conversion, shards, digests, time.monotonic() - start))


def _source_paths(options: Options) -> list[Path]:
    """List everything that is read. Hub repositories are included, although they are not paths."""
    given = (options.lion, options.vision, options.language_model, options.qformer_tokenizer)
    return [Path(path) for path in (*given, options.overrides, options.tagger) if path is not None]


def read(options: Options) -> tuple[LionConfig, LionProcessor, LionTensors]:
    """Read the configuration, the processor and the tensors from the original files."""
    language_model = resolve_folder(options.language_model, LANGUAGE_MODEL_FILES)
    qformer_tokenizer = resolve_folder(options.qformer_tokenizer, TOKENIZER_FILES)
    overrides = load_json(options.overrides) if options.overrides else {}
    language_model_config = load_config(language_model, "t5")
    processor = _build_processor(language_model, qformer_tokenizer)
    check_overrides(LionConfig, overrides)
    num_blocks = overrides.get("vision_config", {}).get("num_hidden_layers", NUM_VISION_BLOCKS)
    if type(num_blocks) is not int:
        raise ValueError(f"overrides: vision_config.num_hidden_layers is {num_blocks!r}, not a number of blocks.")
    found = read_sources(options.lion, options.vision, language_model, num_blocks)
    bert_config = qformer_tokenizer / "config.json"
    config = infer_config(
        found.tensors,
        language_model_config,
        load_json(bert_config) if bert_config.is_file() else {},
        processor.soft_prompt_token_id,
        overrides,
    )
    config.architectures = [LionForConditionalGeneration.__name__]
    _check_vocabularies(config, processor)
    image_size = config.vision_config.image_size
    processor.image_processor.size = {"height": image_size, "width": image_size}
    return config, processor, found


def _write_weights(folder: Path, shards: list[Shard], conversion: Conversion, allow_nonfinite: bool) -> dict[str, str]:
    """Write the shards and, if there are several, their index. Return the SHA-256 of each file.

    Raises:
        ValueError: If a tensor contains NaN or infinity and `allow_nonfinite` is not set.
    """
    with tqdm(total=sum(shard.num_bytes for shard in shards), unit="B", unit_scale=True, desc="writing") as progress:

        def load(name: str, slot: Slot) -> torch.Tensor:
            progress.update(slot.num_bytes)
            tensor = conversion.make(name, slot)
            if not allow_nonfinite:
                conversion.check_finite(name, tensor)
            return tensor

        digests = {shard.file: write_shard(folder, shard, load) for shard in shards}
    if len(shards) > 1:
        write_index(folder, shards)
    return digests


def _write_settings(folder: Path, config: LionConfig, processor: LionProcessor) -> None:
    config.save_pretrained(folder)
    GenerationConfig(
        **GENERATION_DEFAULTS,
        decoder_start_token_id=config.text_config.decoder_start_token_id,
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=config.text_config.pad_token_id,
    ).save_pretrained(folder)
    try:
        processor.save_pretrained(folder)
    except Exception as error:  # tokenizers raises no narrower class
        raise TargetError(f"{folder}: the processor cannot be written ({reason_of(error)}).") from error


def compare(folder: Path, conversion: Conversion) -> None:
    """Read the weights back and compare each with its source.

    Raises:
        ValueError: If tensors are missing, unexpected or different. The message names them.
    """
    reader = FolderReader(folder)
    wrong = sorted(reader.files.keys() ^ conversion.slots.keys())
    for name, slot in tqdm(conversion.slots.items(), unit="tensor", desc="comparing"):
        if name not in wrong and not same_bits(reader[name], conversion.make(name, slot)):
            wrong.append(name)
    if wrong:
        raise ValueError(f"{folder}: {len(wrong)} tensors differ from their sources: {', '.join(wrong[:5])}.")


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are bitwise equal, including NaN."""
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    return torch.equal(first.reshape(-1).view(torch.uint8), second.contiguous().reshape(-1).view(torch.uint8))


def report(
    output: Path,
    found: LionTensors,
    conversion: Conversion,
    shards: list[Shard],
    digests: Mapping[str, str],
    seconds: float,
) -> str:
    """Format a table of what was converted and written."""
    derived = [entry for entry in conversion.entries.values() if len(entry.originals) > 1]
    reasons: dict[str, int] = {}
    for reason in found.dropped.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    numbers = sum(slot.num_numbers for slot in conversion.slots.values())
    rows = [
        ("source keys used", f"{len(found.tensors):,}"),
        ("tensors derived from several keys", f"{len(derived):,}"),
        *((f"dropped: {reason}", f"{count:,}") for reason, count in sorted(reasons.items())),
        ("tensors written", f"{len(conversion.slots):,}"),
        ("numbers written", f"{numbers:,}"),
        ("bytes written", f"{sum(shard.num_bytes for shard in shards):,}"),
        ("dtype", str(conversion.dtype).removeprefix("torch.")),
        ("seconds", f"{seconds:.1f}"),
        *((f"sha256 of {file}", digest) for file, digest in digests.items()),
    ]
    width = max(len(label) for label, _ in rows)
    lines = [f"{output}: written, read back and compared."]
    return "\n".join(lines + [f"  {label:<{width}}  {value}" for label, value in rows])


def _check_tagger(folder: Path) -> None:
    """Raise `SourceError` if `folder` is not a complete converted tagger."""
    load_config(folder, RamConfig.model_type)
    load_json(folder / "preprocessor_config.json")
    FolderReader(folder)


def _gigabytes(text: str) -> float:
    size = float(text)
    if not 1e-4 <= size <= 1e6:
        raise argparse.ArgumentTypeError(f"{text} GB is not a valid file size")
    return size


def _parse_arguments(argv: list[str] | None) -> Options:
    parser = argparse.ArgumentParser(description="Convert LION's original files to a folder for from_pretrained.")
    parser.add_argument(
        "--lion", type=Path, required=True, help="LION's .pth file: the released layout or a state dict"
    )
    parser.add_argument("--vision", type=Path, help="the vision tower's .pth file; not needed if --lion contains it")
    parser.add_argument("--language-model", required=True, help="FlanT5: a folder or a Hub repository")
    parser.add_argument("--qformer-tokenizer", required=True, help="bert-base-uncased: a folder or a Hub repository")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--overrides", type=Path, help="JSON file with LionConfig fields that cannot be inferred from shapes"
    )
    parser.add_argument("--tagger", type=Path, help="folder of a converted tagger to include in the output")
    dtypes = ("auto", "float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, default="auto", help="auto: bfloat16 from a billion parameters")
    parser.add_argument(
        "--trained-in-float32", action="store_true", help="keep the weights that LION trained in float32"
    )
    parser.add_argument(
        "--max-shard-size", type=_gigabytes, default=2.0, metavar="GB", help="maximum size of a shard (default: 2)"
    )
    parser.add_argument("--allow-nonfinite", action="store_true", help="allow NaN and infinity")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output folder")
    return Options(**vars(parser.parse_args(argv)))


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parse_arguments(argv)

    def action() -> bool:
        _convert_checkpoint(options)
        return True

    return run_command(action)


if __name__ == "__main__":
    sys.exit(main())
