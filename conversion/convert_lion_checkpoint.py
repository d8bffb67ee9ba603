"""Convert LION's original files to a folder that `from_pretrained` loads.

    python conversion/convert_lion_checkpoint.py --lion lion.pth --vision eva_vit_g.pth --language-model flan-t5-xl \
        --qformer-tokenizer bert-base-uncased --output lion-flant5-xl

What is in the files is described in `docs/checkpoint.md`. Nothing is guessed: every key has its place, is on the list
of droppable ones, or is an error; so is every key that is missing.
"""

import argparse
import contextlib
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, BertTokenizer, GenerationConfig

from infer_config import infer_config
from key_map import convert
from lion_keys import DROPPABLE, EMBEDDING, EMBEDDING_ALIASES, LANGUAGE_MODEL_PREFIX, LION_KEYS, VISION_PREFIX
from sources import SourceError, load_file, load_folder, load_json
from transformers_lion.configuration_lion import LionConfig
from transformers_lion.image_processing_lion import LionImageProcessor
from transformers_lion.modeling_lion import LionForConditionalGeneration
from transformers_lion.pipelines import TAGGER_FOLDER
from transformers_lion.processing_lion import LionProcessor
from transformers_lion.ram import RamConfig

NUM_VISION_BLOCKS = 39
"""Blocks of EVA-ViT-g that LION runs; its file may hold a 40th."""

GENERATION_DEFAULTS = {"num_beams": 5, "max_new_tokens": 256, "min_length": 1, "repetition_penalty": 1.5}
"""The reference's defaults; what it leaves at 1 or off is off in transformers too."""


def gather(
    lion: Mapping[str, torch.Tensor],
    vision: Mapping[str, torch.Tensor],
    language_model: Mapping[str, torch.Tensor],
    num_vision_blocks: int = NUM_VISION_BLOCKS,
) -> dict[str, torch.Tensor]:
    """One state dict in the reference's names; where files overlap LION's own goes before the others.

    Raises:
        ValueError: if an alias of the embedding table is not the table.
    """
    tensors = {
        **{VISION_PREFIX + name.removeprefix(VISION_PREFIX): tensor for name, tensor in vision.items()},
        **{LANGUAGE_MODEL_PREFIX + name: tensor for name, tensor in language_model.items()},
        **lion,
    }
    drop_aliases(tensors)
    return {name: tensor for name, tensor in tensors.items() if not is_droppable(name, num_vision_blocks)}


def drop_aliases(tensors: dict[str, torch.Tensor]) -> None:
    """Remove the embedding table's other names; the released file has them in another precision than the table.

    Raises:
        ValueError: if an alias holds other values than the table, so that one of the files belongs to another model.
    """
    for alias in EMBEDDING_ALIASES:
        tensor = tensors.pop(alias, None)
        if tensor is None:
            continue
        table = tensors.setdefault(EMBEDDING, tensor)
        if table.shape != tensor.shape or not torch.equal(table.to(tensor.dtype), tensor):
            raise ValueError(
                f"{alias} {tuple(tensor.shape)} is not the table of the language model's folder {tuple(table.shape)}: "
                "the LION file was trained on another language model."
            )


def is_droppable(name: str, num_vision_blocks: int) -> bool:
    """Whether a key has no place in the converted model."""
    block = re.match(r"visual_encoder\.blocks\.(\d+)\.", name)
    if block and int(block.group(1)) >= num_vision_blocks:
        return True
    return any(pattern.fullmatch(name) for pattern in DROPPABLE)


def build_model(
    config: LionConfig, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> LionForConditionalGeneration:
    """The model with `tensors` (reference names) in it.

    Raises:
        ValueError: naming every key without a place, every missing key, and every shape that differs.
    """
    converted = {
        name: tensor.to(dtype).contiguous()
        for name, tensor in convert(LION_KEYS.from_originals(tensors), tensors.__getitem__)
    }
    with torch.device("meta"):
        model = LionForConditionalGeneration(config)
    expected = {
        name: tensor.shape for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys
    }
    position_table = "vision_model.embeddings.position_embedding"
    converted[position_table] = resize_positions(converted[position_table], expected[position_table][1])
    problems = [f"{name} is missing" for name in sorted(expected.keys() - converted.keys())]
    problems += [f"{name} has no place in the model" for name in sorted(converted.keys() - expected.keys())]
    problems += [
        f"{name} has shape {tuple(converted[name].shape)}, not {tuple(shape)}"
        for name, shape in sorted(expected.items())
        if name in converted and converted[name].shape != shape
    ]
    if problems:
        raise ValueError("The files do not make up one model: " + "; ".join(problems))
    model.load_state_dict(converted, strict=False, assign=True)
    model.tie_weights()
    left_behind = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    assert not left_behind, left_behind
    return model


def resize_positions(table: torch.Tensor, num_positions: int) -> torch.Tensor:
    """(1, P, V) -> (1, `num_positions`, V), bicubic over the grid; the row of CLS stays."""
    if table.shape[1] == num_positions:
        return table
    old, new = round((table.shape[1] - 1) ** 0.5), round((num_positions - 1) ** 0.5)
    grid = table[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)


def build_processor(language_model: Path, qformer_tokenizer: Path, image_size: int) -> LionProcessor:
    """The processor from the two tokenizers' folders."""
    bert = BertTokenizer.from_pretrained(qformer_tokenizer, truncation_side="left")
    bert.add_special_tokens({"bos_token": "[DEC]"})
    image_processor = LionImageProcessor(size={"height": image_size, "width": image_size})
    return LionProcessor(image_processor, AutoTokenizer.from_pretrained(language_model), bert)


def check_vocabularies(config: LionConfig, processor: LionProcessor) -> None:
    """Raise `ValueError` if a tokenizer makes ids that the model has no embedding for."""
    pairs = [("language model", config.text_config.vocab_size, processor.tokenizer)]
    if config.uses_qformer:
        pairs.append(("Q-Former", config.qformer_config.vocab_size, processor.qformer_tokenizer))
    for part, rows, tokenizer in pairs:
        if len(tokenizer) > rows:
            raise ValueError(f"The {part}'s tokenizer has {len(tokenizer)} tokens, but its embedding {rows} rows.")


def convert_checkpoint(
    lion: Path,
    vision: Path | None,
    language_model: Path,
    qformer_tokenizer: Path,
    output: Path,
    overrides: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    tagger: Path | None = None,
) -> LionConfig:
    """Convert the files and write the folder; `output` appears when all of it is written.

    Args:
        lion: LION's own `.pth`: the released layout, a bare state dict, or a full one.
        vision: the vision tower's file; `None` if `lion` holds the tower.
        language_model: FlanT5's folder.
        qformer_tokenizer: bert-base-uncased's folder.
        output: the folder to write; it may not exist.
        overrides: LionConfig's fields that shapes cannot tell.
        dtype: of all weights that are written.
        tagger: a converted tagger's folder, to be copied to `output`'s `tagger/`.

    Raises:
        ValueError: with one sentence that names what is wrong.
    """
    overrides = overrides or {}
    if output.exists():
        raise SourceError(f"{output}: exists already.")
    if tagger is not None:
        check_tagger(tagger)
    processor_sizes = dict(overrides.get("vision_config", {}))
    processor = build_processor(language_model, qformer_tokenizer, image_size=224)
    tensors = gather(
        load_file(lion),
        load_file(vision) if vision else {},
        load_folder(language_model),
        processor_sizes.get("num_hidden_layers", NUM_VISION_BLOCKS),
    )
    bert_config = qformer_tokenizer / "config.json"
    config = infer_config(
        tensors,
        load_json(language_model / "config.json"),
        load_json(bert_config) if bert_config.is_file() else {},
        processor.soft_prompt_token_id,
        overrides,
    )
    check_vocabularies(config, processor)
    image_size = config.vision_config.image_size
    processor.image_processor.size = {"height": image_size, "width": image_size}
    config.dtype = dtype
    model = build_model(config, tensors, dtype)
    model.generation_config = GenerationConfig(
        **GENERATION_DEFAULTS,
        decoder_start_token_id=config.text_config.decoder_start_token_id,
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=config.text_config.pad_token_id,
    )
    with unfinished(output) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        if tagger is not None:
            shutil.copytree(tagger, folder / TAGGER_FOLDER)
    return config


def check_tagger(folder: Path) -> None:
    """Raise `SourceError` if `folder` holds no converted tagger."""
    model_type = load_json(folder / "config.json").get("model_type")
    if model_type != RamConfig.model_type:
        raise SourceError(f"{folder}: holds no tagger but a model of type {model_type!r}; convert RAM's file first.")


@contextlib.contextmanager
def unfinished(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its name when the block ends, and goes away if it fails."""
    folder = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Convert LION's original files to a folder for from_pretrained.")
    parser.add_argument("--lion", type=Path, required=True, help="LION's .pth: released layout or a state dict")
    parser.add_argument("--vision", type=Path, help="the vision tower's .pth; not needed if --lion holds the tower")
    parser.add_argument("--language-model", type=Path, required=True, help="FlanT5's folder")
    parser.add_argument("--qformer-tokenizer", type=Path, required=True, help="bert-base-uncased's folder")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; may not exist")
    parser.add_argument("--overrides", type=Path, help="JSON with fields of LionConfig that shapes cannot tell")
    parser.add_argument("--tagger", type=Path, help="folder of a converted tagger, to be put into the output")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    arguments = parse_arguments(argv)
    try:
        config = convert_checkpoint(
            arguments.lion,
            arguments.vision,
            arguments.language_model,
            arguments.qformer_tokenizer,
            arguments.output,
            load_json(arguments.overrides) if arguments.overrides else None,
            getattr(torch, arguments.dtype),
            arguments.tagger,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.output}: LION with visual branch {config.visual_branch!r}, {arguments.dtype}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
