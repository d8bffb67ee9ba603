"""Downloads checkpoints from the Hub, and checks their files before weights are loaded.

transformers requests each file that any checkpoint might have separately. This is slow on a bad connection. Offline, it
loads the second tokenizer of a processor from the wrong folder. Therefore a repository is downloaded as a whole and
loaded from the local folder. If it is cached, a single request is enough.
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
"""Subfolder of a checkpoint with its tagger."""

QFORMER_TOKENIZER = "qformer_tokenizer"
"""Subfolder of a processor with the Q-Former tokenizer. transformers defines the name."""

VOCABULARIES = {"": ("tokenizer.json", "spiece.model"), QFORMER_TOKENIZER: ("tokenizer.json", "vocab.txt")}
"""Possible vocabulary files of each tokenizer, by subfolder."""

PROCESSOR_FILES = (
    "processor_config.json", "preprocessor_config.json", "chat_template*", "additional_chat_templates/*", "tokenizer*",
    "special_tokens_map.json", "added_tokens.json", "spiece.model", f"{QFORMER_TOKENIZER}/*", "*.py",
)  # fmt: skip
MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
TAGGER_FILES = (f"{TAGGER_FOLDER}/*",)
TIMEOUT = 10.0
"""Timeout for the Hub in seconds, after which the cache is used."""

HUB_OPTIONS = ("revision", "cache_dir", "token", "force_download", "local_files_only")
"""Options of `from_pretrained` that select the files to load."""

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
AUTO_CLASSES: dict[str, Any] = {
    LionConfig.model_type: AutoModelForImageTextToText,
    RamConfig.model_type: AutoModelForImageClassification,
}


def local_folder(name: str | os.PathLike, files: Sequence[str], subfolder: str = "", **options: Any) -> str:
    """Return the local folder of a checkpoint, downloading its files if necessary.

    Args:
        name: Local folder or Hub repository.
        files: Patterns of the files to download.
        subfolder: Subfolder of the repository that contains the files.
        **options: Options in `HUB_OPTIONS`.

    Returns:
        The local folder. If neither the Hub nor the cache has the repository, `name` is returned unchanged, so that
        transformers raises its own error.
    """
    source = os.fspath(name)
    if os.path.exists(source):
        return source
    patterns = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in files]
    try:
        return _newest_folder(source, patterns, **options)
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError):
        return source
    except (HTTPError, OSError, ValueError):  # the Hub is unreachable or the name is invalid
        options["local_files_only"] = True
    try:
        return snapshot_download(source, allow_patterns=patterns, **options)
    except (OSError, ValueError):
        return source


def _newest_folder(repo: str, patterns: Sequence[str], **options: Any) -> str:
    """Return the cache folder with the newest files of a repository, downloading only missing files.

    Raises:
        HTTPError, OSError, ValueError: If the Hub does not respond in time or refuses the request.
    """
    if constants.HF_HUB_OFFLINE or options.get("local_files_only"):
        raise FileNotFoundError(f"{repo} cannot be requested offline.")
    revision, token = options.get("revision"), options.get("token")
    info = HfApi().model_info(repo, revision=revision, token=token, timeout=TIMEOUT)
    names = filter_repo_objects((file.rfilename for file in info.siblings or ()), allow_patterns=list(patterns))
    found = {name: try_to_load_from_cache(repo, name, options.get("cache_dir"), info.sha) for name in names}
    if found and all(isinstance(path, str) for path in found.values()) and not options.get("force_download"):
        name, path = next(iter(found.items()))
        return str(path).removesuffix(os.path.join("", *name.split("/")))
    return snapshot_download(repo, allow_patterns=list(patterns), **{**options, "revision": info.sha})


def check_processor_files(folder: str | os.PathLike) -> None:
    """Check that a folder has all files of a processor. transformers would silently load an empty vocabulary.

    Raises:
        FileNotFoundError: If a file is missing. The error names it.
    """
    place = Path(folder)
    _need_file(place / "processor_config.json")
    for name, vocabularies in VOCABULARIES.items():
        _need_file(place / name / "tokenizer_config.json")
        if not any((place / name / vocabulary).is_file() for vocabulary in vocabularies):
            raise _no_such_file(place / name / vocabularies[0])


def check_tagger_files(folder: str | os.PathLike) -> None:
    """Check that a folder has all files of a tagger.

    Raises:
        FileNotFoundError: If a file is missing. The error names it.
    """
    place = Path(folder)
    _need_file(place / "config.json")
    _need_file(place / "preprocessor_config.json")
    if not any(place.glob("*.safetensors")) and not any(place.glob("*.bin")):
        raise _no_such_file(place / "model.safetensors")


def _need_file(path: Path) -> None:
    if not path.is_file():
        raise _no_such_file(path)


def _no_such_file(path: Path) -> FileNotFoundError:
    return FileNotFoundError(2, os.strerror(2), str(path))


@dataclass(frozen=True)
class StoredTensor:
    """Shape and dtype of a tensor from a safetensors header. The dtype is spelled as in safetensors, such as "BF16"."""

    shape: tuple[int, ...]
    dtype: str


def read_config(folder: Path, model_type: str) -> Any:
    """Read the configuration of a model of the given type.

    Raises:
        OSError: If the folder does not exist.
        ValueError: If the folder has no configuration, or it is invalid or belongs to another type of model.
    """
    if not folder.is_dir():
        raise NotADirectoryError(20, os.strerror(20), str(folder)) if folder.exists() else _no_such_file(folder)
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder}: this folder has no config.json, so it does not contain a model.")
    found = read_json(file).get("model_type")
    if found != model_type:
        raise ValueError(f"{file}: this is a model of type {found!r}, not {model_type!r}.")
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # validators raise many types of errors
        raise ValueError(f"{file}: invalid configuration: {error}") from error


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file does not contain a JSON object.
    """
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:  # also for invalid encodings
        raise ValueError(f"{file}: this is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected an object, not {type(content).__name__}.")
    return content


def meta_model(config: Any) -> Any:
    """Create a model on the meta device."""
    with torch.device("meta"):
        return AUTO_CLASSES[config.model_type].from_config(config)


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Read the headers of all safetensors files of a checkpoint, including shards.

    Raises:
        OSError: If a file is missing or cannot be read.
        ValueError: If a file is damaged.
    """
    index = folder / INDEX
    names = {WEIGHTS}
    if not (folder / WEIGHTS).exists() and index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index}: weight_map must be an object with at least one file.")
        names = {str(name) for name in weight_map.values()}
    return {key: tensor for name in sorted(names) for key, tensor in _read_header(folder / name).items()}


def _read_header(file: Path) -> dict[str, StoredTensor]:
    """Read the header of one safetensors file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is damaged or incomplete.
    """
    _need_file(file)
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not iterable)
            return {name: StoredTensor(tuple(x.get_shape()), x.get_dtype()) for name, x in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged or incomplete safetensors file: {error}.") from error


def check_folder(folder: Path, model_type: str = LionConfig.model_type) -> None:
    """Check that a folder contains a complete checkpoint, before it is loaded.

    Args:
        folder: Folder of a LION model or a tagger.
        model_type: Expected model type.

    Raises:
        OSError: If a file is missing. The error names it.
        ValueError: If a file is invalid, or weights are missing or have the wrong shape. transformers would only log a
            warning about missing weights.
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
            compare(folder, meta_model(config), stored)  # a tagger's weights are renamed when loaded


def compare(folder: Path, model: torch.nn.Module, stored: Mapping[str, StoredTensor]) -> None:
    """Raise `ValueError` unless the stored tensors match the weights of the model."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    problems = [f"{name} is missing" for name in wanted if name not in stored]
    problems += [
        f"{name} has shape {stored[name].shape}, not {shape}"
        for name, shape in wanted.items()
        if name in stored and stored[name].shape != shape
    ]
    if problems:
        more = f"; and {len(problems) - 2} more" if len(problems) > 2 else ""
        raise ValueError(f"{folder}: the weights do not match config.json: {'; '.join(problems[:2])}{more}.")


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
