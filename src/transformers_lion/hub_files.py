"""The files of a checkpoint in one local folder, whether it is one already or a repository of the Hub.

transformers asks the Hub for each file that a checkpoint of any kind may have, one by one. That is slow where the
network is half up, and goes wrong offline: the second tokenizer of a processor is then taken from the wrong folder. So
a repository is brought to this machine at once and loaded from there; one that is in the cache takes a single request.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import filter_repo_objects

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
        return newest_folder(source, patterns, **options)
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError):
        return source
    except (HTTPError, OSError, ValueError):  # no Hub to be reached, or no such name
        options["local_files_only"] = True
    try:
        return snapshot_download(source, allow_patterns=patterns, **options)
    except (OSError, ValueError):
        return source


def newest_folder(repo: str, patterns: Sequence[str], **options: Any) -> str:
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
    need_file(place / "processor_config.json")
    for name, vocabularies in VOCABULARIES.items():
        need_file(place / name / "tokenizer_config.json")
        if not any((place / name / vocabulary).is_file() for vocabulary in vocabularies):
            raise no_such_file(place / name / vocabularies[0])


def check_tagger_files(folder: str | os.PathLike) -> None:
    """See that a folder holds all of a tagger.

    Raises:
        FileNotFoundError: that names what is missing.
    """
    place = Path(folder)
    need_file(place / "config.json")
    need_file(place / "preprocessor_config.json")
    if not any(place.glob("*.safetensors")) and not any(place.glob("*.bin")):
        raise no_such_file(place / "model.safetensors")


def need_file(path: Path) -> None:
    """Raise `FileNotFoundError` if there is no such file."""
    if not path.is_file():
        raise no_such_file(path)


def no_such_file(path: Path) -> FileNotFoundError:
    """The system's error for a path."""
    return FileNotFoundError(2, os.strerror(2), str(path))


__all__ = ["check_processor_files", "check_tagger_files", "local_folder"]
