"""What is imported when, and that LION is registered whatever was imported first."""

import importlib
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import transformers_lion
from transformers_lion import deferred_registration
from transformers_lion.deferred_registration import RegisteringFinder

HEAVY = {"torch", "transformers"}
BEYOND_TRANSFORMERS = {"datasets", "pandas", "gradio", "typer", "peft", "ray", "matplotlib", "onnxruntime"}
"""What the package uses in places, and imports nowhere else."""
LIST_MODULES = "import sys\nprint(*{name.partition('.')[0] for name in sys.modules})\n"
USE_REGISTRIES = """
import transformers_lion
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY
model = AutoModelForImageTextToText.from_pretrained(transformers_lion.example_checkpoint())
processor = AutoProcessor.from_pretrained(transformers_lion.example_checkpoint())
for task in ("image-tagging", "image-to-text"):
    PIPELINE_REGISTRY.check_task(task)
assert type(model) is transformers_lion.LionForConditionalGeneration
assert type(processor) is transformers_lion.LionProcessor
"""


def imported_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after some code."""
    code = f"{code}\n{LIST_MODULES}"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(ran.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["locate", "--help"], ["info", "--help"]])
def test_help_and_version_import_neither_torch_nor_transformers(arguments: list[str]) -> None:
    code = f"from transformers_lion.cli import app\napp({arguments!r}, standalone_mode=False)"
    assert not imported_by(code) & HEAVY


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    found = imported_by("import transformers_lion\ntransformers_lion.example_checkpoint()")
    assert not found & (HEAVY | BEYOND_TRANSFORMERS)


def test_auto_classes_and_pipelines_know_lion_after_a_bare_import_and_import_nothing_else() -> None:
    found = imported_by(USE_REGISTRIES)
    assert found >= HEAVY
    assert not found & BEYOND_TRANSFORMERS


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """For each registration the modules that were there, in a small world where `registry` stands for transformers."""
    (tmp_path / "own").mkdir()
    texts = {
        "registry": "",
        "own/__init__": "",
        "own/light": "",
        "own/outer": "import own.inner",
        "own/inner": "import registry\nimport own.light",
        "own/failing": "import registry\nimport lost",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    names = {name.replace("/", ".").removesuffix(".__init__") for name in texts}
    found: list[list[str]] = []

    def register() -> None:
        there = (name for name in names & set(sys.modules) if not sys.modules[name].__spec__._initializing)  # type: ignore[union-attr]
        found.append(sorted(there))

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(deferred_registration, "REGISTRY", "registry")
    monkeypatch.setattr(deferred_registration, "PACKAGE", "own")
    monkeypatch.setattr(deferred_registration, "register", register)
    deferred_registration.register_with_transformers()
    yield found
    for name in names & set(sys.modules):
        del sys.modules[name]


def test_registration_follows_the_import_of_transformers(calls: list[list[str]]) -> None:
    importlib.import_module("own.light")
    assert calls == []
    importlib.import_module("registry")
    importlib.import_module("own.outer")
    assert len(calls) == 1
    assert not any(isinstance(finder, RegisteringFinder) for finder in sys.meta_path)
    deferred_registration.register_with_transformers()  # transformers is there already
    assert len(calls) == 2


def test_registration_waits_for_the_package_modules_that_import_transformers(calls: list[list[str]]) -> None:
    importlib.import_module("own.outer")
    assert calls == [["own", "own.inner", "own.light", "registry"]]  # Python marks own.outer as finished after its code


def test_registration_happens_although_the_module_that_imported_transformers_failed(calls: list[list[str]]) -> None:
    with pytest.raises(ModuleNotFoundError, match="lost"):
        importlib.import_module("own.failing")
    assert len(calls) == 1


def test_public_names_are_found_listed_and_pickled_as_if_they_were_imported() -> None:
    assert sorted(transformers_lion.MODULES) == transformers_lion.__all__ == sorted(transformers_lion.__all__)
    for name in transformers_lion.__all__:
        value = getattr(transformers_lion, name)
        assert name in dir(transformers_lion)
        assert pickle.loads(pickle.dumps(value)) is value
    assert transformers_lion.grounding.boxes.__name__ == "transformers_lion.grounding.boxes"
    with pytest.raises(AttributeError, match=r"'transformers_lion' has no attribute 'lost'"):
        transformers_lion.lost  # noqa: B018
    assert not any(isinstance(finder, RegisteringFinder) for finder in sys.meta_path)
