"""Folders of checkpoints, local or from the Hub: bring their files here, and check them before weights are loaded.

transformers asks the Hub for each file that a checkpoint of any kind may have, one by one. This is slow on a bad
connection and fails offline: the second tokenizer of a processor is then taken from the wrong folder. So a repository
is brought to this machine at once and loaded from there; one that is in the cache takes a single request.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForImageTextToText

from .configuration_lion import LionConfig
from .ram import RamConfig

TAGGER_FOLDER = "tagger"
"""Where a checkpoint's folder holds its tagger."""

QFORMER_TOKENIZER = "qformer_tokenizer"
"""Where a processor's folder holds the Q-Former's tokenizer, as transformers names it."""

VOCABULARIES = {"": ("tokenizer.json", "spiece.model"), QFORMER_TOKENIZER: ("tokenizer.json", "vocab.txt")}
"""Files that each tokenizer's vocabulary may be in, by folder."""

PROCESSOR_FILES = (
    "processor_config.json", "preprocessor_config.json", "chat_template*", "additional_chat_templates/*", "tokenizer*",
    "special_tokens_map.json", "added_tokens.json", "spiece.model", f"{QFORMER_TOKENIZER}/*", "*.py",
)  # fmt: skip
MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
TAGGER_FILES = (f"{TAGGER_FOLDER}/*",)
TIMEOUT = 10.0
"""Seconds for the Hub to answer; then what is in the cache is taken."""

HUB_OPTIONS = ("revision", "cache_dir", "token", "force_download", "local_files_only")
"""Options of transformers that say where files come from."""

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
AUTO_CLASSES: dict[str, Any] = {
    LionConfig.model_type: AutoModelForImageTextToText,
    RamConfig.model_type: AutoModelForImageClassification,
}


def local_folder(name: str | os.PathLike, files: Sequence[str], subfolder: str = "", **options: Any) -> str:
    """The folder with a checkpoint's files.

    Args:
        name: a folder, or a repository of the Hub.
        files: patterns of those that are wanted.
        subfolder: of the repository, in which they are.
        **options: `HUB_OPTIONS`.

    Returns:
        The folder; the name as it is if the Hub and the cache have no such repository, for transformers to explain.
    """
    source = os.fspath(name)
    if os.path.exists(source):
        return source
    patterns = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in files]
    try:
        return _newest_folder(source, patterns, **options)
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError):
        return source
    except (HTTPError, OSError, ValueError):  # no Hub to be reached, or no such name
        options["local_files_only"] = True
    try:
        return snapshot_download(source, allow_patterns=patterns, **options)
    except (OSError, ValueError):
        return source


def _newest_folder(repo: str, patterns: Sequence[str], **options: Any) -> str:
    """The folder of the cache with a repository's newest files, of which those that are missing are fetched.

    Raises:
        HTTPError, OSError, ValueError: if the Hub cannot be reached in time, or refuses.
    """
    if constants.HF_HUB_OFFLINE or options.get("local_files_only"):
        raise FileNotFoundError(f"{repo} may not be asked for.")
    revision, token = options.get("revision"), options.get("token")
    info = HfApi().model_info(repo, revision=revision, token=token, timeout=TIMEOUT)
    names = filter_repo_objects((file.rfilename for file in info.siblings or ()), allow_patterns=list(patterns))
    found = {name: try_to_load_from_cache(repo, name, options.get("cache_dir"), info.sha) for name in names}
    if found and all(isinstance(path, str) for path in found.values()) and not options.get("force_download"):
        name, path = next(iter(found.items()))
        return str(path).removesuffix(os.path.join("", *name.split("/")))
    return snapshot_download(repo, allow_patterns=list(patterns), **{**options, "revision": info.sha})


def check_processor_files(folder: str | os.PathLike) -> None:
    """See that a folder holds all of a processor: transformers goes on without a vocabulary, which has no words then.

    Raises:
        FileNotFoundError: that names what is missing.
    """
    place = Path(folder)
    _need_file(place / "processor_config.json")
    for name, vocabularies in VOCABULARIES.items():
        _need_file(place / name / "tokenizer_config.json")
        if not any((place / name / vocabulary).is_file() for vocabulary in vocabularies):
            raise _no_such_file(place / name / vocabularies[0])


def check_tagger_files(folder: str | os.PathLike) -> None:
    """See that a folder holds all of a tagger.

    Raises:
        FileNotFoundError: that names what is missing.
    """
    place = Path(folder)
    _need_file(place / "config.json")
    _need_file(place / "preprocessor_config.json")
    if not any(place.glob("*.safetensors")) and not any(place.glob("*.bin")):
        raise _no_such_file(place / "model.safetensors")


def _need_file(path: Path) -> None:
    """Raise `FileNotFoundError` if there is no such file."""
    if not path.is_file():
        raise _no_such_file(path)


def _no_such_file(path: Path) -> FileNotFoundError:
    """The system's error for a path."""
    return FileNotFoundError(2, os.strerror(2), str(path))


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as its file's header has it: a shape and a dtype in the format's words, such as "BF16"."""

    shape: tuple[int, ...]
    dtype: str


def read_config(folder: Path, model_type: str) -> Any:
    """The configuration of a folder that holds a model of a type.

    Raises:
        OSError: if there is no such folder or no configuration in it.
        ValueError: if it is that of another model, or is not valid.
    """
    if not folder.is_dir():
        raise NotADirectoryError(20, os.strerror(20), str(folder)) if folder.exists() else _no_such_file(folder)
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder}: there is no model in this folder, which has no config.json.")
    found = read_json(file).get("model_type")
    if found != model_type:
        raise ValueError(f"{file}: this is a model of type {found!r}, not {model_type!r}.")
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # whatever a validator raises
        raise ValueError(f"{file}: it is not valid: {error}") from error


def read_json(file: Path) -> dict[str, Any]:
    """An object in a file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is none.
    """
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:  # of JSON and of its encoding
        raise ValueError(f"{file}: this is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected an object, not {type(content).__name__}.")
    return content


def meta_model(config: Any) -> Any:
    """The model of a configuration, with shapes but no numbers."""
    with torch.device("meta"):
        return AUTO_CLASSES[config.model_type].from_config(config)


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a folder's safetensors files.

    Raises:
        OSError: if a file is missing or cannot be read.
        ValueError: if one is broken.
    """
    index = folder / INDEX
    names = {WEIGHTS}
    if not (folder / WEIGHTS).exists() and index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index}: it names no files.")
        names = {str(name) for name in weight_map.values()}
    return {key: tensor for name in sorted(names) for key, tensor in _read_header(folder / name).items()}


def _read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is broken or not complete.
    """
    _need_file(file)
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            return {name: StoredTensor(tuple(x.get_shape()), x.get_dtype()) for name, x in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{file}: this is not a whole safetensors file: {error}.") from error


def check_folder(folder: Path, model_type: str = LionConfig.model_type) -> None:
    """See whether a folder holds a whole checkpoint, before anything slow is begun.

    Args:
        folder: of a LION or of a tagger.
        model_type: which of them.

    Raises:
        OSError: if a file is missing; it names it.
        ValueError: if something is not right; of what transformers would only warn of too, as of missing weights.
    """
    config = read_config(folder, model_type)
    if model_type == LionConfig.model_type:
        _need_file(folder / "generation_config.json")
        check_processor_files(folder)
        read_json(folder / "processor_config.json")
    else:
        check_tagger_files(folder)
    has_safetensors = (folder / WEIGHTS).exists() or (folder / INDEX).exists()
    if not has_safetensors and not any(folder.glob("*.bin*")):
        raise _no_such_file(folder / WEIGHTS)
    if has_safetensors:
        stored = read_headers(folder)
        if model_type == LionConfig.model_type and getattr(config, "quantization_config", None) is None:
            compare(folder, meta_model(config), stored)  # a tagger's tensors have other names in its file


def compare(folder: Path, model: torch.nn.Module, stored: Mapping[str, StoredTensor]) -> None:
    """Raise `ValueError` unless stored tensors are a model's."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    problems = [f"{name} is missing" for name in wanted if name not in stored]
    problems += [
        f"{name} has shape {stored[name].shape}, not {shape}"
        for name, shape in wanted.items()
        if name in stored and stored[name].shape != shape
    ]
    if problems:
        more = f"; and {len(problems) - 2} more" if len(problems) > 2 else ""
        raise ValueError(f"{folder}: its weights are not those of its config.json: {'; '.join(problems[:2])}{more}.")


__all__ = [
    "StoredTensor",
    "check_folder",
    "check_processor_files",
    "check_tagger_files",
    "compare",
    "local_folder",
    "meta_model",
    "read_config",
    "read_headers",
    "read_json",
]
