"""Folders that carry the code: without the package, with it, and after they were loaded and saved again."""

import itertools
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, pipeline

import remote_code
from processes import WITHOUT_PACKAGE, answer_of, run_python
from ram.conftest import convert_ram
from ram.recipe import write_ram_files
from remote_code import AUTO_MAPS, add_code, code_files, leads_to_code
from transformers_lion import LionConfig, LionForConditionalGeneration, LionProcessor

QUESTION = "What is in the image?"

LOADS = {
    "a pipeline first": """
pipe = pipeline("image-to-text", model=folder, trust_remote_code=True)
model, processor = pipe.model, pipe.processor
assert type(pipe).__name__ == "LionImageToTextPipeline"
""",
    "the processor first": """
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
""",
    "the image processor first": """
AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
""",
}

WORK = """
import json, sys
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, pipeline
folder, saved = {folder!r}, {saved!r}
{load}
assert type(model).__module__.startswith("transformers_modules."), type(model)
assert type(processor).__module__.startswith("transformers_modules."), type(processor)
model.save_pretrained(saved)
processor.save_pretrained(saved)
inputs = processor(Image.open({image!r}), {question!r}, return_tensors="pt")
print(json.dumps(model.generate(**inputs, max_new_tokens=8).tolist()))
"""


@pytest.fixture(scope="module")
def code_folder(lion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code") / "lion"
    shutil.copytree(lion_folder, folder)
    add_code(folder)
    return folder


@pytest.fixture(scope="module")
def answer(lion_model: LionForConditionalGeneration, lion_processor: LionProcessor, image: Path) -> str:
    """What the package answers."""
    inputs = lion_processor(Image.open(image), QUESTION, return_tensors="pt")
    return json.dumps(lion_model.generate(**inputs, max_new_tokens=8).tolist())


def python_files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.py")}


@pytest.mark.parametrize("first", LOADS)
def test_a_process_without_the_package_loads_saves_and_loads_again(
    first: str, code_folder: Path, image: Path, answer: str, tmp_path: Path
) -> None:
    folders = [code_folder, tmp_path / "saved", tmp_path / "saved again"]
    for number, (folder, saved) in enumerate(itertools.pairwise(folders)):
        code = WITHOUT_PACKAGE + WORK.format(
            folder=str(folder), saved=str(saved), image=str(image), question=QUESTION, load=LOADS[first]
        )
        assert answer_of(code, home=tmp_path / f"process {number}") == answer
        assert python_files(saved) == python_files(code_folder)
        for name in ("config.json", "processor_config.json"):
            assert json.loads((saved / name).read_text())["auto_map"] == AUTO_MAPS[name]


def test_a_process_without_the_package_refuses_a_folder_without_the_code(lion_folder: Path, tmp_path: Path) -> None:
    code = WITHOUT_PACKAGE + (
        "from transformers import AutoModelForImageTextToText\n"
        f"AutoModelForImageTextToText.from_pretrained({str(lion_folder)!r}, trust_remote_code=True)"
    )
    process = run_python("-c", code, home=tmp_path / "process")
    assert process.returncode == 1
    assert "does not recognize this architecture" in process.stderr


def test_without_trust_the_code_does_not_run(code_folder: Path, tmp_path: Path) -> None:
    code = WITHOUT_PACKAGE + (
        "from transformers import AutoModelForImageTextToText\n"
        f"AutoModelForImageTextToText.from_pretrained({str(code_folder)!r}, trust_remote_code=False)"
    )
    process = run_python("-c", code, home=tmp_path / "process")
    assert process.returncode == 1
    assert "trust_remote_code=True" in process.stderr
    assert not (tmp_path / "process" / "cache" / "modules").exists()


def test_a_tagger_in_the_folder_works_without_the_package(lion_folder: Path, tmp_path: Path, image: Path) -> None:
    folder = tmp_path / "lion"
    shutil.copytree(lion_folder, folder)
    assert convert_ram(write_ram_files(tmp_path / "ram-files"), folder / "tagger") == 0
    add_code(folder)
    code = WITHOUT_PACKAGE + (
        "import json; from transformers import pipeline\n"
        f"pipe = pipeline('image-to-text', model={str(folder)!r}, trust_remote_code=True)\n"
        f"print(json.dumps(pipe({str(image)!r}, max_new_tokens=4, return_tags=True)))"
    )
    there = json.loads(answer_of(code, home=tmp_path / "process"))
    here = pipeline("image-to-text", model=str(folder))(str(image), max_new_tokens=4, return_tags=True)
    assert there == here
    assert there[0]["tags"] is not None


def test_who_imported_the_package_needs_no_trust_and_saves_no_code(code_folder: Path, tmp_path: Path) -> None:
    assert type(AutoConfig.from_pretrained(code_folder)) is LionConfig
    pipe = pipeline("image-to-text", model=str(code_folder))
    assert type(pipe.model) is LionForConditionalGeneration
    assert type(pipe.processor) is LionProcessor
    pipe.model.save_pretrained(tmp_path / "model")
    pipe.processor.save_pretrained(tmp_path / "processor")
    pipe.processor.image_processor.save_pretrained(tmp_path / "image_processor")
    assert not list(tmp_path.rglob("*.py"))
    assert not any("auto_map" in file.read_text() for file in tmp_path.rglob("*config.json"))


def test_a_folder_without_the_code_is_saved_without_it(lion_folder: Path, tmp_path: Path) -> None:
    AutoModelForImageTextToText.from_pretrained(lion_folder).save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(lion_folder).save_pretrained(tmp_path)
    assert not python_files(tmp_path)
    for name in ("config.json", "processor_config.json"):
        assert "auto_map" not in (tmp_path / name).read_text()


def test_adding_the_code_again_changes_nothing(code_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lion"
    shutil.copytree(code_folder, folder)
    add_code(folder)
    for path in code_folder.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (folder / path.relative_to(code_folder)).read_bytes(), path


def test_the_code_is_flat_and_whole() -> None:
    files = code_files()
    for name, text in files.items():
        compile(text, name, "exec")
        for dots, module in re.findall(r"^\s*from (\.+)([\w.]*) import", text, re.MULTILINE):
            assert dots == ".", f"{name} imports from the folder above"
            assert f"{module}.py" in files, f"{name} imports {module}"
        assert "transformers_lion import" not in text, f"{name} imports the installed package"


def test_two_modules_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path = tmp_path / "package"
    (tmp_path / "part").mkdir(parents=True)
    (tmp_path / "lion_remote.py").write_text("from package.part import a\n")
    (tmp_path / "part" / "__init__.py").write_text("from .names import a\nfrom ..names import b\n")
    for folder in (tmp_path, tmp_path / "part"):
        (folder / "names.py").write_text("a = b = 1\n")
    monkeypatch.setattr(remote_code, "PACKAGE", tmp_path)
    monkeypatch.setattr(remote_code, "ENTRY", tmp_path / "lion_remote.py")
    with pytest.raises(ValueError, match=r"names\.py and .*names\.py cannot lie in one folder"):
        code_files()
    (tmp_path / "part" / "__init__.py").write_text("from .names import a\n")
    assert code_files() == {
        "lion_remote.py": "from .part import a\n",
        "names.py": "a = b = 1\n",
        "part.py": "from .names import a\n",
    }


def test_the_code_is_the_package_s_own() -> None:
    def without_places(text: str) -> str:
        return re.sub(r"from \.+(\w+\.)*(\w+) import", r"from \2 import", text)

    originals = defaultdict(list)
    for path in remote_code.PACKAGE.rglob("*.py"):
        name = f"{path.parent.name}.py" if path.name == "__init__.py" else path.name
        originals[name].append(without_places(path.read_text()))
    assert code_files().keys() - originals.keys() == {"lion_remote.py"}
    for name, text in code_files().items():
        assert name == "lion_remote.py" or without_places(text) in originals[name], name


@pytest.mark.parametrize(
    ("auto_map", "expected"),
    [
        (None, False),
        ({}, False),
        ({"AutoConfig": "configuration_other.OtherConfig"}, False),
        ({"AutoConfig": "lion_remote.LionConfig"}, True),
        ({"AutoConfig": "someone/lion--lion_remote.LionConfig"}, True),
    ],
)
def test_other_people_s_code_is_not_taken_for_this(auto_map: dict[str, str] | None, expected: bool) -> None:
    assert leads_to_code(auto_map) is expected
