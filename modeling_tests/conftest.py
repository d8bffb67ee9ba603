"""Shared fixtures: the small LION, converted once from its original files, with its model and processor."""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "HF_DATASETS_CACHE" not in os.environ:  # the caches of records; processes that tests start share the folder
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="lion-datasets-")
    atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from convert_lion_checkpoint import main as convert
from recipe import GOLDENS, write_lion_files
from restored_logging import no_deprecations, restored_logging
from transformers_lion import LionForConditionalGeneration, LionProcessor

torch.set_num_threads(1)  # the models are too small for several threads
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start


@pytest.fixture(autouse=True)
def logging_of_its_own() -> Iterator[None]:
    """Restore logging and progress bars after each test; a logged deprecation is an error."""
    with restored_logging(), no_deprecations():
        yield


def convert_lion(files: Path, output: Path, lion: str = "lion.pth") -> Path:
    """Run the conversion command on the small LION's files."""
    arguments = {
        "--lion": files / lion,
        "--vision": files / "eva_vit.pth",
        "--language-model": files / "llm",
        "--qformer-tokenizer": files / "bert",
        "--overrides": files / "overrides.json",
        "--output": output,
    }
    assert convert([str(part) for pair in arguments.items() for part in pair]) == 0
    return output


@pytest.fixture(scope="session")
def lion_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lion_files(tmp_path_factory.mktemp("original") / "files")


@pytest.fixture(scope="session")
def lion_folder(lion_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_lion(lion_files, tmp_path_factory.mktemp("converted") / "lion")


@pytest.fixture(scope="session")
def lion_model(lion_folder: Path) -> LionForConditionalGeneration:
    """Shared by all tests; copy it before changing it."""
    return LionForConditionalGeneration.from_pretrained(lion_folder).eval()


@pytest.fixture(scope="session")
def lion_processor(lion_folder: Path) -> LionProcessor:
    return LionProcessor.from_pretrained(lion_folder)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image in a file."""
    path = tmp_path_factory.mktemp("image") / "photo.png"
    Image.radial_gradient("L").convert("RGB").resize((64, 43)).save(path)
    return path


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    """The reference's outputs, and its input pixels."""
    return {**load_file(GOLDENS / "lion" / "outputs.safetensors"), **load_file(GOLDENS / "lion" / "inputs.safetensors")}


@pytest.fixture(scope="session")
def case() -> dict[str, Any]:
    """Questions, tags and answers of the parity cases, and the reference's generated texts."""
    return json.loads((GOLDENS / "lion" / "case.json").read_text())
