"""`lion info`: describes a checkpoint folder from its configuration and file headers, without loading weights."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..example import example_checkpoint
from .common import Debug, run_action

if TYPE_CHECKING:
    from torch import nn

    from ..checkpoint_utils import StoredTensor
    from ..configuration_lion import LionConfig
    from ..modeling_lion import LionForConditionalGeneration

PARTS = {
    "vision tower": ("vision_model",),
    "Q-Former": ("query_tokens", "qformer", "language_projection"),
    "aggregator": ("aggregator", "aggregator_projection"),
    "soft prompt": ("soft_prompt",),
    "language model": ("language_model",),
}
"""The parts that the command lists, with their modules."""
ADAPTERS = "of which adapters"
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per number."""
PROMPT_TOKENS = 128
"""Length of the prompt that memory is estimated for: a question with a long tag sentence."""
MAX_NEW_TOKENS = 256
"""Length of the answer that memory is estimated for, if the checkpoint sets no limit."""


def info(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Checkpoint folder.", show_default="the example checkpoint")
    ] = None,
    max_memory: Annotated[
        list[str] | None,
        typer.Option(
            "--max-memory", metavar="[DEVICE=]SIZE", help="Show the placement of weights: 0=20GB; cpu=30GB. Repeatable."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Show the parts, sizes, tasks, tags, dtypes and memory needs of a checkpoint. Weights are not loaded."""

    def action() -> None:
        facts = describe(folder or Path(example_checkpoint()), max_memory or ())
        print(json.dumps(facts, indent=2) if as_json else as_text(facts))

    run_action(action, debug)


def describe(folder: Path, max_memory: Sequence[str] = ()) -> dict[str, Any]:
    """Collect the facts about a folder that holds a LION model or a tagger.

    Args:
        folder: the checkpoint folder.
        max_memory: memory limits for the placement of LION's weights; see `placement.read_limits`.

    Raises:
        OSError, ValueError: if the folder holds neither, or is damaged.
    """
    from ..checkpoint_utils import TAGGER_FOLDER, compare, meta_model, read_config, read_headers, read_json
    from ..configuration_lion import TASK_TYPES, LionConfig
    from .placement import describe_placement

    if (folder / "config.json").is_file() and read_json(folder / "config.json").get("model_type") == "ram":
        return {"folder": str(folder), "model": "RAM, a tagger", **describe_tagger(folder)}
    config = read_config(folder, LionConfig.model_type)
    stored, model = read_headers(folder), meta_model(config)
    if getattr(config, "quantization_config", None) is None:
        compare(folder, model, stored)
    has_tagger = (folder / TAGGER_FOLDER / "config.json").is_file()
    processor = folder / "processor_config.json"
    tag_prompt = read_json(processor).get("tag_prompt") if processor.is_file() else None
    loads_as = str(config.dtype or "float32").removeprefix("torch.")
    size, generation = config.vision_config.image_size, generation_of(folder)
    return {
        "folder": str(folder),
        "model": "LION",
        "parameters": {**count_parts(model), "total": count(model)},
        "image_size": [size, size] if isinstance(size, int) else list(size),
        "visual_branch": config.visual_branch,
        "query_tokens": config.num_query_tokens if config.uses_qformer else 0,
        "tasks": list(TASK_TYPES) if config.text_config.num_adapters > 1 else ["one for all"],
        "tag_prompt": tag_prompt,
        "tagger": describe_tagger(folder / TAGGER_FOLDER) if has_tagger else None,
        "stored": count_dtypes(stored),
        "loads_as": loads_as,
        "computes_in": describe_inference_plan(config, loads_as),
        "generation": generation,
        "memory": {name: memory(model, config, generation, itemsize) for name, itemsize in DTYPES.items()},
        **({"placement": describe_placement(model, max_memory)} if max_memory else {}),
    }


def describe_tagger(folder: Path) -> dict[str, Any]:
    """Collect the facts about a folder that holds a tagger."""
    from ..checkpoint_utils import meta_model, read_config, read_headers
    from ..ram import RamConfig

    config = read_config(folder, RamConfig.model_type)
    model = meta_model(config)
    return {
        "parameters": {"total": count(model)},
        "num_tags": config.num_labels,
        "image_size": [config.vision_config.image_size] * 2,
        "stored": count_dtypes(read_headers(folder)),
        "memory": {name: {"weights": size * count(model)} for name, size in DTYPES.items()},
    }


def describe_inference_plan(config: "LionConfig", dtype: str) -> str:
    """How the commands compute with a checkpoint on this machine's CPU."""
    import torch

    from ..cpu_inference.plan import plan_for_dtype

    if getattr(config, "quantization_config", None) is not None:
        return "weights as loaded (quantized)"
    return str(plan_for_dtype(getattr(torch, dtype)))


def count(module: "nn.Module") -> int:
    """Return the number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_parts(model: "LionForConditionalGeneration") -> dict[str, int]:
    """Return the number of parameters of each part; adapters also count towards the language model."""
    modules = dict(model.named_children())
    counts = {
        part: sum(count(modules[name]) for name in names if name in modules)
        for part, names in PARTS.items()
        if any(name in modules for name in names)
    }
    adapters = sum(tensor.numel() for name, tensor in model.named_parameters() if ".adapter." in name)
    return {**counts, ADAPTERS: adapters} if adapters else counts


def count_dtypes(stored: dict[str, "StoredTensor"]) -> dict[str, int]:
    """Return how many numbers the files store in each dtype, by the dtype's name in safetensors."""
    counts: Counter[str] = Counter()
    for tensor in stored.values():
        counts[tensor.dtype] += math.prod(tensor.shape)
    return dict(counts.most_common())


def generation_of(folder: Path) -> dict[str, int]:
    """Return the default number of beams and new tokens of `generate`."""
    from transformers import GenerationConfig

    has_file = (folder / "generation_config.json").is_file()
    config = GenerationConfig.from_pretrained(folder) if has_file else GenerationConfig()
    return {"num_beams": config.num_beams or 1, "max_new_tokens": config.max_new_tokens or MAX_NEW_TOKENS}


def memory(
    model: "LionForConditionalGeneration", config: "LionConfig", generation: dict[str, int], itemsize: int
) -> dict[str, int]:
    """Return the size of the weights in bytes, with estimates of the cache and the largest activations of a request."""
    text, vision = config.text_config, config.vision_config
    height, width = (vision.image_size,) * 2 if isinstance(vision.image_size, int) else vision.image_size
    patches = (height // vision.patch_size) * (width // vision.patch_size) + 1
    visual = (config.num_query_tokens if config.uses_qformer else 0) + (patches if config.uses_aggregator else 0)
    tokens, beams = visual + PROMPT_TOKENS, generation["num_beams"]
    cache = 2 * text.num_decoder_layers * text.num_heads * text.d_kv * beams * (tokens + generation["max_new_tokens"])
    work = max(
        patches * (vision.intermediate_size + 6 * vision.hidden_size + vision.num_attention_heads * patches),
        tokens * (2 * text.d_ff + 6 * text.d_model + text.num_heads * tokens),
        4 * beams * text.vocab_size,
    )
    return {
        "weights": itemsize * count(model),
        "estimated_cache": itemsize * cache,
        "estimated_activations": itemsize * work,
    }


# --- for people ---------------------------------------------------------------------------------------------------


def as_text(facts: dict[str, Any]) -> str:
    """Format the facts in lines of at most 80 columns, unless the folder's name is longer."""
    lines = [f"{facts['folder']}: {facts['model']}", "", "Parameters"]
    lines += [f"  {name:<18}{number:>18,}" for name, number in order_parts(facts["parameters"]).items()]
    rows = {"Image size": " x ".join(map(str, facts["image_size"]))}
    if "tasks" in facts:
        rows["Branches"] = {"both": "Q-Former and aggregator"}.get(facts["visual_branch"], facts["visual_branch"])
        rows["Task types"] = ", ".join(facts["tasks"])
        rows["Tags"] = say_tags(facts)
        rows["Generation"] = "{num_beams} beams, at most {max_new_tokens} new tokens".format(**facts["generation"])
    else:
        rows["Tags"] = f"{facts['num_tags']:,}"
    rows["Stored as"] = ", ".join(f"{name} ({number:,})" for name, number in facts["stored"].items())
    if "loads_as" in facts:
        rows["Loads as"] = facts["loads_as"]
        rows["On this CPU"] = facts["computes_in"]
    lines += ["", *(f"{name:<12}{text}" for name, text in rows.items()), "", "Memory"]
    for name, parts in facts["memory"].items():
        text = f"  {name:<10}weights {as_size(parts['weights'])}"
        if len(parts) > 1:
            text += f", estimated: cache {as_size(parts['estimated_cache'])}, "
            text += f"activations {as_size(parts['estimated_activations'])}"
        lines.append(text)
    if "tasks" in facts:
        lines.append(f"  (estimated for one image at a time and a prompt of {PROMPT_TOKENS} tokens)")
    if "placement" in facts:
        limits, *rows_of_dtypes = facts["placement"].items()
        lines += ["", f'Weights with device_map="auto" and at most {say_sizes(limits[1])}']
        lines += [f"  {name:<10}{say_sizes(sizes)}" for name, sizes in rows_of_dtypes]
    return "\n".join(lines)


def order_parts(parameters: dict[str, int]) -> dict[str, int]:
    """Move the adapters below the language model, which contains them."""
    adapters = {ADAPTERS: parameters[ADAPTERS]} if ADAPTERS in parameters else {}
    rest = {name: number for name, number in parameters.items() if name not in (ADAPTERS, "total")}
    indented = {f"  {name}": number for name, number in adapters.items()}
    return {**rest, **indented, "total": parameters["total"]}


def say_tags(facts: dict[str, Any]) -> str:
    """Describe whether the checkpoint has a tagger."""
    if facts["tagger"] is None:
        return "no tagger of its own (no folder tagger/)"
    tagger = facts["tagger"]
    return f"from its own tagger ({tagger['num_tags']:,} tags, {tagger['parameters']['total']:,} parameters)"


def say_sizes(sizes: dict[str, int]) -> str:
    """Format sizes by device, such as `GPU 0 1.2 GiB, disk 3.0 GiB`, leaving out empty devices."""
    named = {f"GPU {device}" if device.isdecimal() else device: size for device, size in sizes.items() if size}
    return ", ".join(f"{device} {as_size(size)}" for device, size in named.items())


def as_size(number: int) -> str:
    """Format a number of bytes."""
    value = number / 1024
    for unit in ("KiB", "MiB"):
        if value < 1000:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
