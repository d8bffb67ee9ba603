"""Read a LION folder in the layout of transformers and check that its weights match its configuration."""

from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError

from shards import FolderReader
from sources import SourceError, first_fault, load_config
from transformers_lion.configuration_lion import LionConfig
from transformers_lion.modeling_lion import LionForConditionalGeneration

Shapes = Mapping[str, tuple[int, ...]]


def load_lion_config(folder: Path) -> LionConfig:
    """Load the configuration of a folder.

    Raises:
        SourceError: If it is missing or not LION's.
    """
    load_config(folder, LionConfig.model_type)
    try:
        return LionConfig.from_pretrained(folder)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise SourceError(f"{folder / 'config.json'}: not a valid configuration ({first_fault(error)}).") from error


def parameter_shapes(config: LionConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of a model with this configuration."""
    with torch.device("meta"):
        model = LionForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}


def differences(found: Shapes, wanted: Shapes) -> str:
    """Describe how the parameters differ from the expected ones, to end a sentence. Return "" if they do not differ."""
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name} is not part of the model" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name} has shape {found[name]}, not {shape}"
        for name, shape in sorted(wanted.items())
        if found.get(name, shape) != shape
    ]
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more


def open_lion_folder(folder: Path) -> tuple[LionConfig, FolderReader]:
    """Open a folder after checking that its weights are complete and match its configuration.

    Raises:
        SourceError: If a weight is missing, unexpected or of another shape. The message names it.
    """
    config, reader = load_lion_config(folder), FolderReader(folder)
    problems = differences(reader.shapes, parameter_shapes(config))
    if problems:
        raise SourceError(f"{folder}: its weights do not match its configuration: {problems}.")
    return config, reader
