"""Convert LION's original files to a folder that `from_pretrained` loads.

    python conversion/convert_lion_checkpoint.py --lion lion.pth --vision eva_vit_g.pth --language-model flan-t5-xl \
        --qformer-tokenizer bert-base-uncased --output lion-flant5-xl

What is in the files is described in `docs/checkpoint.md`. Nothing is guessed: every key has its place, is on the list
of droppable ones, or is an error; so is every key that is missing. Tensors are read, converted and written one at a
time, and at the end read back and compared; the output appears when all of that is done.
"""

import argparse
import contextlib
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import AutoTokenizer, BertTokenizer, GenerationConfig

from infer_config import check_overrides, infer_config
from key_map import Entry, convert
from lion_keys import LION_KEYS
from lion_sources import NUM_VISION_BLOCKS, LionTensors, read_sources, resolve_folder
from shards import FolderReader, Shard, Slot, plan_shards, write_index, write_shard
from sources import SourceError, load_json
from transformers_lion.configuration_lion import LionConfig
from transformers_lion.image_processing_lion import LionImageProcessor
from transformers_lion.modeling_lion import LionForConditionalGeneration
from transformers_lion.pipelines import TAGGER_FOLDER
from transformers_lion.processing_lion import LionProcessor
from transformers_lion.ram import RamConfig

GENERATION_DEFAULTS = {"num_beams": 5, "max_new_tokens": 256, "min_length": 1, "repetition_penalty": 1.5}
"""The reference's defaults; what it leaves at 1 or off is off in transformers too."""

LARGE = 10**9
"""Numbers from which on `--dtype auto` is bfloat16, in which the reference itself runs its language model."""

FROZEN = re.compile(r"vision_model\.(?!post_layernorm)|language_model\.(?!.*\.adapter\.)")
"""Parameters that LION's training leaves as they are, by their converted name."""

POSITION_TABLE = "vision_model.embeddings.position_embedding"
LANGUAGE_MODEL_FILES = ("*.json", "*.safetensors", "*.model")
TOKENIZER_FILES = ("*.json", "vocab.txt")


class Conversion:
    """The converted model's tensors, made one at a time from the original ones.

    Args:
        found: the original tensors.
        config: of the converted model.
        dtype: of the weights; `None` for the default.
        trained_in_float32: whether what LION's training changed stays in float32.

    Raises:
        ValueError: naming keys without a place, missing keys, and shapes that differ.
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
        with torch.device("meta"):
            model = LionForConditionalGeneration(config)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
        self._check_shapes(shapes)
        if dtype is None:
            dtype = torch.bfloat16 if model.num_parameters() >= LARGE else torch.float32
        self.dtype = dtype
        trained = torch.float32 if trained_in_float32 else dtype
        self.slots = {name: Slot(shape, dtype if FROZEN.match(name) else trained) for name, shape in shapes.items()}

    def _check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        made = convert(self.entries.values(), lambda key: self.tensors[key].to("meta"))
        found = {name: tuple(tensor.shape) for name, tensor in made}
        if POSITION_TABLE in found:
            found[POSITION_TABLE] = shapes[POSITION_TABLE]  # another grid is resized
        problems = [f"{name} is missing" for name in sorted(shapes.keys() - found.keys())]
        problems += [f"{name} has no place in the model" for name in sorted(found.keys() - shapes.keys())]
        problems += [
            f"{name} has shape {found[name]}, not {shape}"
            for name, shape in sorted(shapes.items())
            if found.get(name, shape) != shape
        ]
        if problems:
            more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise ValueError("The files do not make up one model: " + "; ".join(problems[:5]) + more + ".")

    def make(self, name: str, slot: Slot) -> torch.Tensor:
        """One converted tensor."""
        entry = self.entries[name]
        tensor = entry.rule.forward(*(self.tensors[key] for key in entry.originals))
        if name == POSITION_TABLE:
            tensor = resize_positions(tensor, slot.shape[1])
        return tensor.to(slot.dtype)

    def check_finite(self, name: str) -> None:
        """Raise `ValueError` if a source of a converted tensor holds NaN or infinity."""
        for key in self.entries[name].originals:
            finite = torch.isfinite(self.tensors[key])
            if not finite.all():
                count = int((~finite).sum())
                raise ValueError(f"{key} holds {count} NaN or infinite values; --allow-nonfinite lets them be.")


def resize_positions(table: torch.Tensor, num_positions: int) -> torch.Tensor:
    """(1, P, V) -> (1, `num_positions`, V), bicubic over the grid; the row of CLS stays."""
    if table.shape[1] == num_positions:
        return table
    old, new = round((table.shape[1] - 1) ** 0.5), round((num_positions - 1) ** 0.5)
    grid = table[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)


def build_processor(language_model: Path, qformer_tokenizer: Path) -> LionProcessor:
    """The processor from the two tokenizers' folders.

    Raises:
        SourceError: if a folder holds no tokenizer.
    """
    bert = load_tokenizer(BertTokenizer, qformer_tokenizer)
    bert.add_special_tokens({"bos_token": "[DEC]"})
    # the reference's version of transformers tidies the spaces of decoded text by default
    t5 = load_tokenizer(AutoTokenizer, language_model, clean_up_tokenization_spaces=True)
    return LionProcessor(LionImageProcessor(), t5, bert)


def load_tokenizer(tokenizer_class: Any, folder: Path, **options: Any) -> Any:
    """The tokenizer of a folder.

    Raises:
        SourceError: if there is none.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model", "vocab.txt")):
        raise SourceError(f"{folder}: holds no tokenizer (tokenizer.json, spiece.model or vocab.txt).")
    try:
        return tokenizer_class.from_pretrained(folder, **options)
    except Exception as error:  # transformers and tokenizers raise many kinds
        reason = str(error).strip().split("\n", 1)[0]
        raise SourceError(f"{folder}: its tokenizer cannot be loaded ({reason}).") from error


def check_vocabularies(config: LionConfig, processor: LionProcessor) -> None:
    """Raise `ValueError` if a tokenizer does not belong to its embedding table."""
    tokens, rows = len(processor.tokenizer), config.text_config.vocab_size
    if tokens > rows:  # FlanT5's table has rows to spare
        raise ValueError(f"The language model's tokenizer has {tokens} tokens, but its embedding {rows} rows.")
    tokens, rows = len(processor.qformer_tokenizer), config.qformer_config.vocab_size
    if config.uses_qformer and tokens != rows:
        raise ValueError(f"The Q-Former's tokenizer has {tokens} tokens with [DEC], but its embedding {rows} rows.")


@dataclass(frozen=True)
class Options:
    """What the command line says; see `parse_arguments`."""

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


def convert_checkpoint(options: Options) -> None:
    """Convert the files, write the folder, compare it with the files, and print what was done.

    Raises:
        ValueError: with one sentence that names what is wrong; nothing is written then.
        OSError: if the disk refuses.
    """
    start = time.monotonic()
    recover(options.output)
    if options.output.exists() and not options.overwrite:
        raise SourceError(f"{options.output}: exists already; --overwrite replaces it.")
    if options.tagger is not None:
        check_tagger(options.tagger)
    config, processor, found = read(options)
    conversion = Conversion(
        found,
        config,
        None if options.dtype == "auto" else getattr(torch, options.dtype),
        options.trained_in_float32,
    )
    config.dtype = conversion.dtype
    shards = plan_shards(conversion.slots, int(options.max_shard_size * 1e9))
    check_disk(options.output, sum(shard.num_bytes for shard in shards))
    with unfinished(options.output) as folder:
        digests = write_weights(folder, shards, conversion, options.allow_nonfinite)
        write_settings(folder, config, processor)
        if options.tagger is not None:
            shutil.copytree(options.tagger, folder / TAGGER_FOLDER)
        compare(folder, conversion)
    print(report(options.output, found, conversion, shards, digests, time.monotonic() - start))


def read(options: Options) -> tuple[LionConfig, LionProcessor, LionTensors]:
    """The configuration, the processor and the tensors that the files make up."""
    language_model = resolve_folder(options.language_model, LANGUAGE_MODEL_FILES)
    qformer_tokenizer = resolve_folder(options.qformer_tokenizer, TOKENIZER_FILES)
    overrides = load_json(options.overrides) if options.overrides else {}
    processor = build_processor(language_model, qformer_tokenizer)
    check_overrides(overrides)
    num_blocks = overrides.get("vision_config", {}).get("num_hidden_layers", NUM_VISION_BLOCKS)
    found = read_sources(options.lion, options.vision, language_model, num_blocks)
    bert_config = qformer_tokenizer / "config.json"
    config = infer_config(
        found.tensors,
        load_json(language_model / "config.json"),
        load_json(bert_config) if bert_config.is_file() else {},
        processor.soft_prompt_token_id,
        overrides,
    )
    config.architectures = [LionForConditionalGeneration.__name__]
    check_vocabularies(config, processor)
    image_size = config.vision_config.image_size
    processor.image_processor.size = {"height": image_size, "width": image_size}
    return config, processor, found


def write_weights(folder: Path, shards: list[Shard], conversion: Conversion, allow_nonfinite: bool) -> dict[str, str]:
    """Write the shards and, if there are several, their index; the sha256 of each file.

    Raises:
        ValueError: if a tensor holds NaN or infinity and that is not allowed.
    """
    with tqdm(total=sum(shard.num_bytes for shard in shards), unit="B", unit_scale=True, desc="writing") as progress:

        def load(name: str, slot: Slot) -> torch.Tensor:
            progress.update(slot.num_bytes)
            if not allow_nonfinite:
                conversion.check_finite(name)
            return conversion.make(name, slot)

        digests = {shard.file: write_shard(folder, shard, load) for shard in shards}
    if len(shards) > 1:
        write_index(folder, shards)
    return digests


def write_settings(folder: Path, config: LionConfig, processor: LionProcessor) -> None:
    """Write everything but the weights."""
    config.save_pretrained(folder)
    GenerationConfig(
        **GENERATION_DEFAULTS,
        decoder_start_token_id=config.text_config.decoder_start_token_id,
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=config.text_config.pad_token_id,
    ).save_pretrained(folder)
    processor.save_pretrained(folder)


def compare(folder: Path, conversion: Conversion) -> None:
    """Read the weights back and compare each with its source.

    Raises:
        ValueError: naming the tensors that are missing, too many, or not equal.
    """
    reader = FolderReader(folder)
    wrong = sorted(reader.files.keys() ^ conversion.slots.keys())
    for name, slot in tqdm(conversion.slots.items(), unit="tensor", desc="comparing"):
        if name not in wrong and not same_bits(reader[name], conversion.make(name, slot)):
            wrong.append(name)
    if wrong:
        raise ValueError(f"{folder}: {len(wrong)} tensors are not what their sources say: {', '.join(wrong[:5])}.")


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are equal to the last bit, NaN included."""
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
    """A table of what was done."""
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


def check_tagger(folder: Path) -> None:
    """Raise `SourceError` if `folder` holds no converted tagger."""
    model_type = load_json(folder / "config.json").get("model_type")
    if model_type != RamConfig.model_type:
        raise SourceError(f"{folder}: holds no tagger but a model of type {model_type!r}; convert RAM's file first.")


def check_disk(output: Path, num_bytes: int) -> None:
    """Raise `SourceError` if the disk has no room for the weights and a little more."""
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    free, needed = shutil.disk_usage(parent).free, int(num_bytes * 1.01) + 50_000_000
    if free < needed:
        raise SourceError(f"{output}: {needed:,} bytes are needed, but {free:,} are free on the disk.")


@contextlib.contextmanager
def unfinished(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its place when the block ends, and goes away if it fails.

    What a killed run leaves behind is removed by the next one.
    """
    folder, replaced = beside(output, "unfinished"), beside(output, "replaced")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        if output.exists():
            output.rename(replaced)
        folder.rename(output)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def recover(output: Path) -> None:
    """Finish what a killed run left half done: the old folder comes back, or goes away if a new one is there."""
    replaced = beside(output, "replaced")
    if output.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    elif replaced.exists():
        replaced.rename(output)


def beside(output: Path, label: str) -> Path:
    """A hidden neighbour of `output`."""
    return output.with_name(f".{output.name}.{label}")


def parse_arguments(argv: list[str] | None) -> Options:
    """The command line."""
    parser = argparse.ArgumentParser(description="Convert LION's original files to a folder for from_pretrained.")
    parser.add_argument("--lion", type=Path, required=True, help="LION's .pth: released layout or a state dict")
    parser.add_argument("--vision", type=Path, help="the vision tower's .pth; not needed if --lion holds the tower")
    parser.add_argument("--language-model", required=True, help="FlanT5: a folder or a Hub repository")
    parser.add_argument("--qformer-tokenizer", required=True, help="bert-base-uncased: a folder or a Hub repository")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--overrides", type=Path, help="JSON with fields of LionConfig that shapes cannot tell")
    parser.add_argument("--tagger", type=Path, help="folder of a converted tagger, to be put into the output")
    dtypes = ("auto", "float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, default="auto", help="auto: bfloat16 from a billion numbers on")
    parser.add_argument("--trained-in-float32", action="store_true", help="keep what LION trained in float32")
    parser.add_argument("--max-shard-size", type=float, default=2.0, metavar="GB", help="of a file; 2 by default")
    parser.add_argument("--allow-nonfinite", action="store_true", help="let NaN and infinity through")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    return Options(**vars(parser.parse_args(argv)))


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    try:
        convert_checkpoint(parse_arguments(argv))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
