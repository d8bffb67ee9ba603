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
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

ENTRY_MODULE = "lion_remote"

Saved = TypeVar("Saved", bound=Any)
"""A class of transformers that saves itself as JSON."""

AUTO_MAPS = {
    "config.json": {
        "AutoConfig": f"{ENTRY_MODULE}.LionConfig",
        "AutoModel": f"{ENTRY_MODULE}.LionModel",
        "AutoModelForImageTextToText": f"{ENTRY_MODULE}.LionForConditionalGeneration",
    },
    "processor_config.json": {"AutoProcessor": f"{ENTRY_MODULE}.LionProcessor"},
    "preprocessor_config.json": {"AutoImageProcessor": f"{ENTRY_MODULE}.LionImageProcessor"},
}
"""What leads to the code from each file. The last exists only where an image processor is saved by itself."""

RELATIVE_IMPORT = re.compile(r"^(\s*from )(\.+)([\w.]+)(?= import )", re.MULTILINE)


def code_files() -> dict[str, str]:
    """The modules that `lion_remote` needs, as file names and texts for one flat folder.

    Raises:
        ValueError: if two of them have the same name.
    """
    found: dict[str, Path] = {}
    texts: dict[str, str] = {}
    pending = [Path(__file__).with_name(f"{ENTRY_MODULE}.py")]
    while pending:
        path = pending.pop()
        name = (path.parent.name if path.name == "__init__.py" else path.stem) + ".py"
        if found.setdefault(name, path) != path:
            raise ValueError(f"{found[name]} and {path} cannot lie in one folder.")
        if name not in texts:
            text = path.read_text(encoding="utf-8")
            texts[name] = RELATIVE_IMPORT.sub(lambda match: f"{match[1]}.{match[3].split('.')[-1]}", text)
            pending += [imported(path, len(match[2]), match[3]) for match in RELATIVE_IMPORT.finditer(text)]
    return dict(sorted(texts.items()))


def imported(path: Path, num_dots: int, module: str) -> Path:
    """The file of a module that the one at `path` imports with so many dots."""
    target = path.parents[num_dots - 1].joinpath(*module.split("."))
    return target / "__init__.py" if target.is_dir() else target.with_suffix(".py")


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


def carries_its_code(cls: type[Saved]) -> type[Saved]:
    """Save what was loaded from a folder that carries the code as one. For classes of configurations and processors.

    (A decorator, since transformers tells by a processor's first base class what the processor adds to it.)
    """
    to_json_file = cls.to_json_file

    @wraps(to_json_file)
    def to_json_file_with_code(self: Any, json_file_path: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        path = Path(json_file_path)
        if path.name in AUTO_MAPS and leads_to_code(getattr(self, "auto_map", None)):
            self.auto_map = dict(AUTO_MAPS[path.name])
            write_files(path.parent, code_files())
        to_json_file(self, json_file_path, *args, **kwargs)

    def register_for_auto_class(cls: type, auto_class: str | None = None) -> None:
        """Nothing: with it, transformers would lead to the module of each class and leave `lion_remote` out."""

    cls.to_json_file = to_json_file_with_code
    cls.register_for_auto_class = classmethod(register_for_auto_class)
    return cls
