"""Folders that carry this code, so that they load where the package is not installed.

transformers copies a folder's modules only if they lie side by side, and finds its way in by `auto_map`. Every entry
names the one module `lion_remote`: transformers gives each entry module a package of its own, and so two of them would
make two classes of everything. No `custom_pipelines` is written, which would ask even those for trust who imported
the package: `lion_remote` registers the pipelines.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ENTRY_MODULE = "lion_remote"

AUTO_MAPS = {
    "config.json": {
        "AutoConfig": f"{ENTRY_MODULE}.LionConfig",
        "AutoModel": f"{ENTRY_MODULE}.LionForConditionalGeneration",
        "AutoModelForImageTextToText": f"{ENTRY_MODULE}.LionForConditionalGeneration",
    },
    "processor_config.json": {"AutoProcessor": f"{ENTRY_MODULE}.LionProcessor"},
    "preprocessor_config.json": {"AutoImageProcessor": f"{ENTRY_MODULE}.LionImageProcessor"},
}
"""What leads to the code from each file. The last exists only where an image processor is saved by itself."""

RELATIVE_IMPORT = re.compile(r"^(\s*from )\.+(?:\w+\.)*(\w+)(?= import )", re.MULTILINE)


def code_files() -> dict[str, str]:
    """The modules that `lion_remote` needs, as file names and texts for one flat folder.

    Raises:
        ValueError: if two of the package's modules have the same name.
    """
    modules: dict[str, str] = {}
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        name = path.parent.name if path.name == "__init__.py" else path.stem
        if name in modules:
            raise ValueError(f"Two modules are called {name}: they cannot lie in one folder.")
        modules[name] = RELATIVE_IMPORT.sub(r"\1.\2", path.read_text(encoding="utf-8"))
    needed, found = [ENTRY_MODULE], set()
    while needed:
        name = needed.pop()
        if name not in found:
            found.add(name)
            needed += [match[2] for match in RELATIVE_IMPORT.finditer(modules[name])]
    return {f"{name}.py": modules[name] for name in sorted(found)}


def files_with_code(folder: str | os.PathLike) -> dict[str, str]:
    """Names and texts of the files that `folder`'s checkpoint would have to have in order to carry the code."""
    config, processor = (
        json.loads((Path(folder) / name).read_text(encoding="utf-8")) | {"auto_map": AUTO_MAPS[name]}
        for name in ("config.json", "processor_config.json")
    )
    processor["image_processor"] = processor["image_processor"] | {"auto_map": AUTO_MAPS["preprocessor_config.json"]}
    texts = {"config.json": config, "processor_config.json": processor}
    return {
        **{name: json.dumps(content, indent=2, sort_keys=True) + "\n" for name, content in texts.items()},
        **code_files(),
    }


def add_code(folder: str | os.PathLike) -> None:
    """Make the checkpoint in `folder` carry the code. Calling it again brings the code up to date."""
    write_files(folder, files_with_code(folder))


def write_files(folder: str | os.PathLike, texts: Mapping[str, str]) -> None:
    """Write texts under their names into `folder`."""
    for name, text in texts.items():
        (Path(folder) / name).write_text(text, encoding="utf-8")


def leads_to_code(auto_map: Mapping[str, Any] | None) -> bool:
    """Whether `auto_map` is one of those in `AUTO_MAPS`."""
    return any(str(reference).split("--")[-1].startswith(f"{ENTRY_MODULE}.") for reference in (auto_map or {}).values())


class CarriesItsCode:
    """What was loaded from a folder that carries the code is saved as one. For configurations and processors."""

    auto_map: dict[str, str] | None

    @classmethod
    def register_for_auto_class(cls, auto_class: str | None = None) -> None:
        """Nothing: with it, transformers would lead to the module of each class and leave `lion_remote` out."""

    def to_json_file(self, json_file_path: str | os.PathLike, **kwargs: Any) -> None:
        """As in transformers, which calls this to save and, if wanted, uploads the folder afterwards."""
        path = Path(json_file_path)
        if path.name in AUTO_MAPS and leads_to_code(getattr(self, "auto_map", None)):
            self.auto_map = dict(AUTO_MAPS[path.name])
            write_files(path.parent, code_files())
        super().to_json_file(json_file_path, **kwargs)  # type: ignore[misc]
