"""A folder that holds LION as transformers saves it: its configuration, and whether its weights fit that."""

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
    """The folder's configuration.

    Raises:
        SourceError: if there is none, or it is not LION's.
    """
    load_config(folder, LionConfig.model_type)
    try:
        return LionConfig.from_pretrained(folder)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise SourceError(f"{folder / 'config.json'}: is not valid ({first_fault(error)}).") from error


def parameter_shapes(config: LionConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of the model that a configuration makes."""
    with torch.device("meta"):
        model = LionForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}


def differences(found: Shapes, wanted: Shapes) -> str:
    """How the parameters that were found differ from the wanted ones, as the end of a sentence; "" if they do not."""
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name} has no place in the model" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name} has shape {found[name]}, not {shape}"
        for name, shape in sorted(wanted.items())
        if found.get(name, shape) != shape
    ]
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more


def open_lion_folder(folder: Path) -> tuple[LionConfig, FolderReader]:
    """The configuration and the weights, which are all there and of the configuration's shapes.

    Raises:
        SourceError: naming what is missing, too much or of another shape.
    """
    config, reader = load_lion_config(folder), FolderReader(folder)
    problems = differences(reader.shapes, parameter_shapes(config))
    if problems:
        raise SourceError(f"{folder}: its weights are not those of its configuration: {problems}.")
    return config, reader
