"""Loads checkpoints for the commands, with errors that fit on one line."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..example import example_checkpoint
from .common import note, show_progress

if TYPE_CHECKING:
    import torch

    from ..inference import Lion
    from ..ram import ImageTagger

REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def load_lion(
    model: str | None,
    tagger: str | bool,
    device: str | None,
    dtype: str | None,
    optimize: bool = True,
    compile: bool = False,
) -> "Lion":
    """Load a model with its processor and tagger.

    Args:
        model: folder or repository; the example checkpoint by default.
        tagger: folder or repository of a tagger; `True` for the model's own, if it has one; `False` for none.
        device: a GPU by default, if there is one.
        dtype: dtype of the weights; as saved by default.
        optimize, compile: see `Lion.from_pretrained`. If weights are packed, a note on a terminal says so.

    Raises:
        OSError, ValueError: if something cannot be loaded.
    """
    from ..cpu_inference.default import describe_inference, is_packed
    from ..inference import Lion

    name, where = check_model(model), choose_device(device)
    own: ImageTagger | Literal[False] | None = None if tagger else False
    if isinstance(tagger, str):
        own = load_tagger_from(tagger, where, optimize)
    try:
        lion = Lion.from_pretrained(name, tagger=own, device=where, dtype=dtype, optimize=optimize, compile=compile)
    except Exception as error:  # damaged files raise errors of many types
        raise ValueError(f"{name} cannot be loaded: {first_sentence(error)}") from error
    if is_packed(lion.model) and show_progress():
        note(f"{name} is computed in {describe_inference(lion.model)}; see --no-optimize.")
    return lion


def load_tagger(model: str | None, device: str | None, optimize: bool = True) -> "ImageTagger":
    """Load the tagger of a model, or a tagger's own checkpoint.

    Args:
        model: folder or repository of the model or the tagger; the example checkpoint by default.
        device: a GPU by default, if there is one.
        optimize: see `ImageTagger.from_pretrained`.

    Raises:
        OSError, ValueError: if there is none.
    """
    from ..checkpoint_utils import TAGGER_FOLDER, read_json

    folder = Path(model or example_checkpoint())
    if folder.is_dir() and (folder / TAGGER_FOLDER).is_dir():
        return load_tagger_from(str(folder / TAGGER_FOLDER), choose_device(device), optimize)
    if (folder / "config.json").is_file() and read_json(folder / "config.json").get("model_type") == "lion":
        raise ValueError(f"{folder} has no tagger (no folder {TAGGER_FOLDER}/); specify one with --model.")
    return load_tagger_from(str(model), choose_device(device), optimize)


def load_tagger_from(name: str, device: "torch.device", optimize: bool = True) -> "ImageTagger":
    """Load the tagger in a folder or repository."""
    from ..ram import ImageTagger, RamConfig

    name = check_model(name, RamConfig.model_type)
    try:
        return ImageTagger.from_pretrained(name, device=device, optimize=optimize)
    except Exception as error:
        raise ValueError(f"{name} cannot be loaded: {first_sentence(error)}") from error


def check_model(name: str | None, model_type: str = "lion") -> str:
    """Return the path of a valid checkpoint folder, or a name that may be that of a repository.

    Raises:
        OSError, ValueError: if `name` is neither.
    """
    if name is None:
        return example_checkpoint()
    folder = Path(name).expanduser()
    if folder.exists() or not REPOSITORY.fullmatch(name):
        from ..checkpoint_utils import check_folder

        check_folder(folder, model_type)
        return str(folder)
    return name


def choose_device(device: str | None) -> "torch.device":
    """Return the requested device, or by default a GPU if there is one.

    Raises:
        ValueError: if the requested device is not available.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {device}: {first_sentence(error)}") from error


def first_sentence(error: Exception) -> str:
    """Return the first sentence of an error message, which states the reason."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"(?<=[a-z)'\"])\. (?=[A-Z])", text, maxsplit=1)[0].rstrip(".") + "."
