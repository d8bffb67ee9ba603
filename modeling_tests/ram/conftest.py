"""What the tagger's tests share: the small RAM's original files, converted once, and what the reference computed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from convert_ram_checkpoint import main as convert
from ram.recipe import RAM_GOLDENS, write_ram_files
from transformers_lion.ram import RamForImageTagging


def convert_ram(files: Path, output: Path, overwrite: bool = False, **others: Path) -> int:
    """Run the conversion's command; `others` replace the small RAM's own files."""
    arguments = {
        "ram": files / "ram.pth",
        "tags": files / "tag_list.txt",
        "thresholds": files / "tag_list_threshold.txt",
        "overrides": files / "overrides.json",
        "output": output,
    }
    command = [text for name, path in {**arguments, **others}.items() for text in (f"--{name}", str(path))]
    return convert([*command, *(["--overwrite"] if overwrite else [])])


@pytest.fixture(scope="session")
def ram_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ram_files(tmp_path_factory.mktemp("ram-original") / "files")


@pytest.fixture(scope="session")
def ram_folder(ram_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ram-converted") / "ram"
    assert convert_ram(ram_files, folder) == 0
    return folder


@pytest.fixture(scope="session")
def ram_model(ram_folder: Path) -> RamForImageTagging:
    """Shared: a test that changes it works on a copy."""
    return RamForImageTagging.from_pretrained(ram_folder).eval()


@pytest.fixture(scope="session")
def ram_golden() -> dict[str, torch.Tensor]:
    return load_file(RAM_GOLDENS / "outputs.safetensors")


@pytest.fixture(scope="session")
def ram_case() -> dict[str, Any]:
    return json.loads((RAM_GOLDENS / "case.json").read_text())
