"""Folders that carry the package's code, so that they load where it is not installed.

transformers copies a folder's modules only if they lie side by side, and finds its way in by `auto_map`. Every entry
names the one module `lion_remote`: transformers gives each entry module a package of its own, and so two of them would
make two classes of everything. No `custom_pipelines` is written, which would ask even those for trust who imported
the package: `lion_remote` registers the pipelines.
"""

import argparse
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers_lion
from lion_remote import AUTO_MAPS, ENTRY_MODULE

PACKAGE = Path(transformers_lion.__file__).parent
ENTRY = Path(__file__).with_name(f"{ENTRY_MODULE}.py")
RELATIVE_IMPORT = re.compile(r"^(\s*from )(\.+)([\w.]+)(?= import )", re.MULTILINE)


def code_files() -> dict[str, str]:
    """The modules that `lion_remote` needs, as file names and texts for one flat folder.

    Raises:
        ValueError: if two of them have the same name.
    """
    found: dict[str, Path] = {}
    texts: dict[str, str] = {}
    pending = [PACKAGE / ENTRY.name]
    while pending:
        path = pending.pop()
        name = (path.parent.name if path.name == "__init__.py" else path.stem) + ".py"
        if found.setdefault(name, path) != path:
            raise ValueError(f"{found[name]} and {path} cannot lie in one folder.")
        if name not in texts:
            text = _read_module(path)
            texts[name] = RELATIVE_IMPORT.sub(lambda match: f"{match[1]}.{match[3].split('.')[-1]}", text)
            pending += [imported(path, len(match[2]), match[3]) for match in RELATIVE_IMPORT.finditer(text)]
    return dict(sorted(texts.items()))


def _read_module(path: Path) -> str:
    """The text of a module of the package, or of the entry module as if it were one."""
    if path != PACKAGE / ENTRY.name:
        return path.read_text(encoding="utf-8")
    return ENTRY.read_text(encoding="utf-8").replace(f"from {PACKAGE.name}.", "from .")


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
    _write_files(folder, files_with_code(folder))


def _write_files(folder: str | os.PathLike, texts: Mapping[str, str]) -> None:
    """Write texts under their names into `folder`."""
    for name, text in texts.items():
        (Path(folder) / name).write_text(text, encoding="utf-8")


def leads_to_code(auto_map: Mapping[str, Any] | None) -> bool:
    """Whether `auto_map` is one of those in `AUTO_MAPS`."""
    return any(str(reference).split("--")[-1].startswith(f"{ENTRY_MODULE}.") for reference in (auto_map or {}).values())


def main() -> None:
    """Add the code to a folder."""
    parser = argparse.ArgumentParser(description="Put the package's code into a checkpoint's folder.")
    parser.add_argument("folder", type=Path)
    add_code(parser.parse_args().folder)


if __name__ == "__main__":
    main()
